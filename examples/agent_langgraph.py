"""An agent that decides itself what to search for: our store as a tool of a LangGraph agent.

    pip install "st-llm2vec[langchain]" langchain
    python examples/agent_langgraph.py

Runs offline: the chat model below asks the tool for the whole question, then quotes what came back.
"""

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import create_retriever_tool
from stdlib_docs import passages

from langchain_llm2vec import FaissVectorStore, LLM2VecEmbeddings

MODULES = {"csv", "heapq", "json", "shutil", "statistics", "tempfile", "textwrap"}
STORE = "stdlib-agent"  # a folder; the second run opens it again


class AskingChatModel(BaseChatModel):
    @property
    def _llm_type(self) -> str:
        return "asking"

    def bind_tools(self, tools: list, **kwargs) -> "AskingChatModel":
        return self

    def _generate(self, messages: list, stop=None, run_manager=None, **kwargs) -> ChatResult:
        last = messages[-1]
        if isinstance(last, ToolMessage):
            answer = AIMessage(f'The documentation says: "{last.content[:160]}"')
        else:
            call = {"name": "search_stdlib", "args": {"query": last.content}, "id": "1"}
            answer = AIMessage("", tool_calls=[call])
        return ChatResult(generations=[ChatGeneration(message=answer)])


# 1. A store of docstrings.
store = FaissVectorStore(embedding=LLM2VecEmbeddings("llm2vec-tiny"), path=STORE)
found = [passage for passage in passages() if passage.module in MODULES]
if not store.store.count():
    store.add_texts([f"{p.name}: {p.text}" for p in found], [{"module": p.module} for p in found])

# 2. The store as a tool, and an agent that has it.
chat = AskingChatModel()  # or, for example: chat = langchain_openai.ChatOpenAI(model="gpt-4o-mini")
retriever = store.as_retriever(search_kwargs={"k": 1})
agent = create_agent(chat, [create_retriever_tool(retriever, "search_stdlib", "Searches Python's docstrings.")])

# 3. Ask.
for message in agent.invoke({"messages": [("user", "How do I copy a directory tree?")]})["messages"]:
    calls = [f"{call['name']}({call['args']})" for call in getattr(message, "tool_calls", [])]
    print(f"{message.type:>6}: {' '.join(calls) or message.content[:200]}")

store.close()
