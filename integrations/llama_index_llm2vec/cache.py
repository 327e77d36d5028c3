"""A section of an embeddings cache: LlamaIndex looks up the bare text, whatever the model and whether it is a query."""

from __future__ import annotations

from typing import Any

from llama_index.core.storage.kvstore.types import DEFAULT_COLLECTION, BaseKVStore


class CacheSection(BaseKVStore):  # type: ignore[misc]
    """Collections of `cache` that end in `name`."""

    def __init__(self, cache: BaseKVStore, name: str) -> None:
        self.cache = cache
        self.name = name

    def _collection(self, collection: str) -> str:
        return f"{collection}_{self.name}"

    def put(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        self.cache.put(key, val, self._collection(collection))

    async def aput(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        await self.cache.aput(key, val, self._collection(collection))

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> Any:
        return self.cache.get(key, self._collection(collection))

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> Any:
        return await self.cache.aget(key, self._collection(collection))

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> Any:
        return self.cache.get_all(self._collection(collection))

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> Any:
        return await self.cache.aget_all(self._collection(collection))

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> Any:
        return self.cache.delete(key, self._collection(collection))

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> Any:
        return await self.cache.adelete(key, self._collection(collection))
