"""Questions about the standard library, answered from its docstrings: retrieval-augmented generation with LlamaIndex.

    pip install "st-llm2vec[llama-index]"
    python examples/rag_llama_index.py

Runs offline: the embeddings ship with st_llm2vec, and the language model below only quotes what was found.
"""

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.readers.base import BaseReader
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

from llama_index_llm2vec import FaissVectorStore, LLM2VecEmbedding

MODEL = "llm2vec-tiny"
STORE = "stdlib-llama-index"  # a folder; the second run opens it again
MODULES = ["csv", "datetime", "difflib", "heapq", "json", "pathlib", "shutil", "statistics", "tempfile", "textwrap"]
QUESTIONS = [
    ("How do I copy a whole directory tree?", [("module", FilterOperator.EQ, "shutil")]),
    ("How do I delete a directory tree?", [("module", FilterOperator.IN, ["tempfile", "shutil"])]),
    ("How do I move a file or directory to another location?", []),
    ("How do I remove common leading whitespace from every line?", [("kind", FilterOperator.EQ, "function")]),
    ("How do I compute the middle value of numeric data?", [("symbol", FilterOperator.TEXT_MATCH, "statistics.")]),
]


# 1. Documents: one per docstring, with what we will filter by; LlamaIndex embeds the symbol's name with the text.
class DocstringReader(BaseReader):
    def lazy_load_data(self) -> Iterator[Document]:
        for name in MODULES:
            module = importlib.import_module(name)
            yield self.document(name, "module", name, module)
            for symbol in getattr(module, "__all__", None) or [s for s in vars(module) if not s.startswith("_")]:
                found = getattr(module, symbol)
                if callable(found) and (getattr(module, "__all__", None) or inspect.getmodule(found) is module):
                    yield self.document(
                        name, "class" if inspect.isclass(found) else "function", f"{name}.{symbol}", found
                    )

    def document(self, module: str, kind: str, symbol: str, found: Any) -> Document:
        metadata = {"symbol": symbol, "module": module, "kind": kind}
        unread = ["module", "kind"]  # to filter by, but not to embed
        return Document(
            text=inspect.getdoc(found) or "", id_=symbol, metadata=metadata, excluded_embed_metadata_keys=unread
        )


# 2. Split and index.
store = FaissVectorStore(path=STORE)
index = VectorStoreIndex.from_vector_store(store, LLM2VecEmbedding(MODEL))
if not store.client.count():
    splitter = SentenceSplitter(chunk_size=128, chunk_overlap=16)
    index.insert_nodes(splitter.get_nodes_from_documents(DocstringReader().load_data()))
print(f"{store.client.count()} passages in {STORE}\n")


# 3. A language model that runs anywhere: it quotes the best passage. For a real one, change the line `llm = ...`.
class QuotingLLM(CustomLLM):
    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="quoting")

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        best = prompt.split("---------------------")[1].split("\n\n", 1)[1]
        return CompletionResponse(text=f'The documentation says: "{" ".join(best.split())[:160]}" [1]')

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        yield self.complete(prompt)


llm = QuotingLLM()  # or, for example: llm = llama_index.llms.openai.OpenAI(model="gpt-4o-mini")


# 4. Ask: retrieve under filters, answer, cite.
for question, leaves in QUESTIONS:
    filters = MetadataFilters(filters=[MetadataFilter(key=k, operator=o, value=v) for k, o, v in leaves])
    response = index.as_query_engine(llm=llm, similarity_top_k=3, filters=filters).query(question)
    print(f"Q: {question}    {' '.join(f'{k} {o.value} {v}' for k, o, v in leaves)}\nA: {response}")
    for number, node in enumerate(response.source_nodes, 1):
        print(f"   [{number}] {node.metadata['symbol']}: {' '.join(node.text.split())[:80]} ({node.score:.2f})")
    print()

store.close()
