"""Encode a data frame with Spark: `mapInPandas`, one encoder for every partition.

pip install st-llm2vec pyspark pandas pyarrow     # Spark 4 needs Java 17
python examples/encode_spark.py
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from pyspark.sql import SparkSession

MODEL = "llm2vec-tiny"
TEXTS = ["Bears hibernate in winter.", "Rates rose again on Tuesday.", "The library opens at nine."] * 100


def encode(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """What a task does with its partition."""
    import st_llm2vec

    model = st_llm2vec.load(MODEL, device="cpu")
    for batch in batches:
        vectors = model.encode_document(batch["text"].tolist(), normalize_embeddings=True)
        yield batch.assign(embedding=list(vectors))


def main(folder: Path) -> None:
    # 1. A session of this machine; the tasks run this Python.
    os.environ["PYSPARK_PYTHON"] = sys.executable
    spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()

    # 2. Two partitions: two encoders.
    texts = spark.createDataFrame(list(enumerate(TEXTS)), "id long, text string").repartition(2)
    vectors = texts.mapInPandas(encode, "id long, text string, embedding array<float>")
    vectors.write.parquet(str(folder / "vectors"))

    # 3. What was written.
    found = spark.read.parquet(str(folder / "vectors"))
    print(found.count(), "vectors of", len(found.first()["embedding"]), "dimensions")
    # 300 vectors of 256 dimensions
    spark.stop()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
