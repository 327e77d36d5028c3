"""Encode a data set with Ray Data: an actor that holds the encoder, and as many of them as there are CPUs or GPUs.

    pip install "st-llm2vec[ray]"
    python examples/encode_ray_data.py

`st-llm2vec encode --engine ray` needs none of this and goes on after a kill; take this where Ray Data already reads,
filters and writes.
"""

import json
import os
import tempfile
from pathlib import Path

import ray

import st_llm2vec

MODEL = "llm2vec-tiny"
ACTORS = 2
TEXTS = ["Bears hibernate in winter.", "Rates rose again on Tuesday.", "The library opens at nine."] * 100


class EncodeTexts:
    """What an actor does: loads the encoder once, then encodes batch after batch."""

    def __init__(self) -> None:
        self.model = st_llm2vec.load(MODEL, device="cpu")  # "cuda", with num_gpus=1 below

    def __call__(self, batch: dict) -> dict:
        batch["embedding"] = self.model.encode_document(batch["text"].tolist(), normalize_embeddings=True)
        return batch


def main(folder: Path) -> None:
    # 1. Texts, as a file; a bucket of them is read alike.
    with (folder / "texts.jsonl").open("w") as file:
        file.writelines(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS))

    # 2. Ray waits for ever if the actors take all CPUs and reading and writing get none: declare some more.
    ray.init(num_cpus=max(ACTORS + 2, os.cpu_count() or 1), log_to_driver=False)
    ray.data.read_json(str(folder / "texts.jsonl")).map_batches(
        EncodeTexts, batch_size=64, compute=ray.data.ActorPoolStrategy(size=ACTORS)
    ).write_parquet(str(folder / "vectors"))

    # 3. What was written.
    found = ray.data.read_parquet(str(folder / "vectors"))
    print(found.count(), "vectors of", len(found.take(1)[0]["embedding"]), "dimensions")
    # 300 vectors of 256 dimensions


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
