"""Questions about the standard library, answered from its docstrings: retrieval-augmented generation with LangChain.

    pip install "st-llm2vec[langchain]"
    python examples/rag_langchain.py

Runs offline: the embeddings ship with st_llm2vec, and the chat model below only quotes what was found.
"""

import importlib
import inspect
from collections.abc import Iterator

from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document
from langchain_core.language_models import SimpleChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough

from langchain_llm2vec import FaissVectorStore, LLM2VecEmbeddings

MODEL = "llm2vec-tiny"
STORE = "stdlib-langchain"  # a folder; the second run opens it again
MODULES = ["csv", "datetime", "difflib", "heapq", "json", "pathlib", "shutil", "statistics", "tempfile", "textwrap"]
LONGEST = 400  # characters of a passage, unless a single paragraph is longer
QUESTIONS = [
    ("How do I copy a whole directory tree?", {"module": "shutil"}),
    ("How do I delete a directory tree?", {"module": {"$in": ["tempfile", "shutil"]}}),
    ("How do I move a file or directory to another location?", {}),
    ("How do I remove common leading whitespace from every line?", {"kind": "function"}),
    ("How do I compute the middle value of numeric data?", {"kind": {"$ne": "module"}}),
]


# 1. Documents: one per docstring, with what we will filter by. Paragraphs make up the passages.
class DocstringLoader(BaseLoader):
    def lazy_load(self) -> Iterator[Document]:
        for name in MODULES:
            module = importlib.import_module(name)
            symbols = [(name, "module", module)]
            for symbol in getattr(module, "__all__", None) or [s for s in vars(module) if not s.startswith("_")]:
                found = getattr(module, symbol)
                if inspect.getmodule(found) is module or getattr(module, "__all__", None):
                    symbols.append((f"{name}.{symbol}", "class" if inspect.isclass(found) else "function", found))
            for symbol, kind, found in symbols:
                if callable(found) or kind == "module":
                    metadata = {"symbol": symbol, "module": name, "kind": kind}
                    yield Document(page_content=inspect.getdoc(found) or "", metadata=metadata)


def split(text: str) -> list[str]:
    """Whole paragraphs, together up to LONGEST."""
    parts = [""]
    for paragraph in text.split("\n\n"):
        if parts[-1] and len(parts[-1]) + len(paragraph) > LONGEST:
            parts.append("")
        parts[-1] = f"{parts[-1]}\n\n{paragraph}".strip()
    return [part for part in parts if len(part) > 30]


def passages(documents: list[Document]) -> Iterator[Document]:
    for document in documents:
        symbol = document.metadata["symbol"]
        for number, part in enumerate(split(document.page_content)):
            yield Document(id=f"{symbol}#{number}", page_content=f"{symbol}: {part}", metadata=document.metadata)


# 2. Index.
store = FaissVectorStore(embedding=LLM2VecEmbeddings(MODEL), path=STORE)
if not store.store.count():
    store.add_documents(list(passages(DocstringLoader().load())))
print(f"{store.store.count()} passages in {STORE}\n")


# 3. A chat model that runs anywhere: it quotes the best passage. For a real one, change the line `chat = ...`.
class QuotingChatModel(SimpleChatModel):
    @property
    def _llm_type(self) -> str:
        return "quoting"

    def _call(self, messages: list, stop=None, run_manager=None, **kwargs) -> str:
        best = messages[-1].content.split("[1] ")[1].split("\n\n")[0]
        return f'The documentation says: "{" ".join(best.split())[:160]}" [1]'


chat = QuotingChatModel()  # or, for example: chat = langchain_openai.ChatOpenAI(model="gpt-4o-mini")


# 4. The chain: retrieve under a filter, number the passages, ask.
def numbered(documents: list[Document]) -> str:
    return "\n\n".join(f"[{number}] {document.page_content}" for number, document in enumerate(documents, 1))


prompt = ChatPromptTemplate.from_template(
    "Answer from these passages of Python's documentation, and cite them as [1], [2], ...\n\n"
    "Question: {question}\n\n{passages}"
)
answer = RunnablePassthrough.assign(passages=lambda x: numbered(x["documents"])) | prompt | chat | StrOutputParser()

for question, where in QUESTIONS:
    retriever = store.as_retriever(search_kwargs={"k": 3, "filter": where})
    chain = {"question": RunnablePassthrough(), "documents": retriever} | RunnablePassthrough.assign(answer=answer)
    result = chain.invoke(question)
    print(f"Q: {question}    {where or ''}\nA: {result['answer']}")
    for number, document in enumerate(result["documents"], 1):
        print(f"   [{number}] {' '.join(document.page_content.split())[:100]}")
    print()

# 5. The same store as a tool for an agent: agent_langgraph.py.
store.close()
