"""Load the shards that `st-llm2vec encode` wrote into Qdrant, and search there.

    pip install st-llm2vec pyarrow qdrant-client
    st-llm2vec encode examples/notes vectors
    python examples/load_vectors.py vectors qdrant-folder "planets with rings"

Run again, it puts the same points in the place of the same points. `QdrantClient(url=...)` is a server; Milvus and
pgvector take the same batches: `MilvusClient.upsert`, `INSERT ... ON CONFLICT`.
"""

import json
import sys
import uuid
from pathlib import Path

import pyarrow.parquet
from qdrant_client import QdrantClient, models

from st_llm2vec import load

COLLECTION, BATCH = "passages", 1000


def put(shards: Path, client: QdrantClient) -> int:
    """Put every row of the shards, and return how many there are."""
    manifest = json.loads((shards / "manifest.json").read_text())
    if manifest["format"] != "parquet":
        raise SystemExit(f"{shards} has no .parquet shards: encode it without --to npy.")
    size = manifest["shards"][0]["dimension"]
    if not client.collection_exists(COLLECTION):
        cosine = models.VectorParams(size=size, distance=models.Distance.COSINE)
        client.create_collection(COLLECTION, vectors_config=cosine)
    for entry in manifest["shards"]:
        for batch in pyarrow.parquet.ParquetFile(shards / entry["file"]).iter_batches(BATCH):
            rows = batch.to_pylist()
            vectors = [row.pop("embedding") for row in rows]
            ids = [str(uuid.uuid5(uuid.NAMESPACE_URL, row["id"])) for row in rows]  # Qdrant takes no other texts
            client.upsert(COLLECTION, models.Batch(ids=ids, vectors=vectors, payloads=rows))
    return client.count(COLLECTION).count


def main(shards: str, folder: str, question: str) -> None:
    # 1. All rows, batch by batch: the memory is that of a batch.
    client = QdrantClient(path=folder)
    print(put(Path(shards), client), "points")

    # 2. The question, by the model that the manifest names.
    model = load(json.loads((Path(shards) / "manifest.json").read_text())["model"])
    found = client.query_points(COLLECTION, model.encode_query(question).tolist(), limit=1).points[0]
    print(f"{found.score:.3f} {found.payload['text']}")
    # 0.591 Saturn has wide rings, which are made of ice and rock.
    client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
