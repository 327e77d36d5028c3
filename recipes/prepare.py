"""Writes the data sets that the recipes name, from a folder of public ones: redistributable rows only.

python recipes/prepare.py --data DIR --out build/data

DIR holds `<name>/<split>.jsonl.xz`. Nothing but CC BY, CC BY-SA, CC0 and MIT is read. No split of STS-B and no MRPC row
is trained on: their sentences are in the test; stsb's dev split is written to choose by.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

SEED = 20241
SENTENCE_END = re.compile(r"(?<=[a-z0-9)][.!?]) (?=[A-Z])")
Row = dict[str, Any]


def rows(data: Path, name: str, split: str) -> Iterator[Row]:
    """The rows of one split, from `<data>/<name>/<split>.jsonl.xz` or its numbered shards."""
    files = sorted(
        f for f in (data / name).glob(f"{split}*.jsonl.xz") if re.fullmatch(rf"{split}(-\d\d)?", f.name[:-9])
    )
    if not files:
        raise SystemExit(f"no file {split}.jsonl.xz in {data / name}; give the data folder with --data")
    for file in files:
        with lzma.open(file, "rt", encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def wiki_text(data: Path) -> Iterable[Row]:
    """Articles, shuffled (English Wikipedia, CC BY-SA 3.0)."""
    found = [{"text": row["text"]} for row in rows(data, "wiki_text", "train")]
    random.Random(SEED).shuffle(found)
    return found


def wiki_text_dev(data: Path) -> Iterable[Row]:
    """The first articles of the dev split, to see the loss on."""
    return [{"text": row["text"]} for row in rows(data, "wiki_text", "dev")][:20]


def wiki_sentences(data: Path) -> Iterable[Row]:
    """Sentences (English Wikipedia, CC BY-SA 3.0)."""
    return ({"text": row["text"]} for row in rows(data, "wiki_sentences", "train"))


def snli(data: Path) -> Iterable[Row]:
    """Premise, entailed and contradicted hypothesis (CC BY-SA 4.0); the other sources of nli_triplets are left out."""
    found = (row for row in rows(data, "nli_triplets", "train") if row["source"].startswith("snli"))
    return ({name: row[name] for name in ("anchor", "positive", "negative")} for row in found)


def neutral(data: Path) -> Iterable[Row]:
    """Premise and a hypothesis about the same scene that may or may not hold (SNLI): nearer than any other text."""
    found = (row for row in rows(data, "nli", "train") if row["source"].startswith("snli"))
    return ({"anchor": r["premise"], "positive": r["hypothesis"]} for r in found if r["label"] == "neutral")


def passages(data: Path) -> Iterable[Row]:
    """One sentence of a paragraph against the rest of it (wiki_text, CC BY-SA): an unlabelled kind of retrieval."""
    chooser, pairs = random.Random(SEED), []
    for row in rows(data, "wiki_text", "train"):
        for paragraph in row["text"].split("\n"):
            sentences = SENTENCE_END.split(paragraph)
            if paragraph.startswith("==") or len(sentences) < 3:
                continue
            query = chooser.choice([s for s in sentences if 30 < len(s) < 300] or [sentences[0][:300]])
            rest = " ".join(s for s in sentences if s != query)
            pairs.append({"anchor": query, "positive": f"{row['title']}. {rest[:700]}"})
    chooser.shuffle(pairs)
    return pairs[:12_000]


def neighbours(data: Path) -> Iterable[Row]:
    """Sentences that follow one another in an article (wiki_text, CC BY-SA)."""
    chooser, pairs = random.Random(SEED), []
    for row in rows(data, "wiki_text", "train"):
        sentences = [s for s in SENTENCE_END.split(row["text"].replace("\n", " ")) if 30 < len(s) < 250]
        pairs += [{"anchor": a, "positive": b} for a, b in list(pairwise(sentences))[::6]]
    chooser.shuffle(pairs)
    return pairs[:20_000]


def questions(data: Path, limit: int = 6_000) -> Iterable[Row]:
    """Questions and the passage that answers: SQuAD by way of QNLI (CC BY-SA), MedQuAD (CC BY), PubMedQA (MIT)."""
    pairs = [
        {"anchor": row["question"], "positive": row["sentence"]}
        for row in rows(data, "qnli", "train")
        if row["label"] == "entailment"
    ]
    first = {row["question"]: row["answer"][:700] for row in reversed(list(rows(data, "medquad", "train")))}
    medical = [{"anchor": question, "positive": answer} for question, answer in first.items()]
    random.Random(SEED).shuffle(medical)
    pairs += medical[:limit]
    return pairs + [
        {"anchor": row["question"], "positive": row["context"][:900]} for row in rows(data, "pubmedqa", "train")
    ]


def pubmed(data: Path) -> Iterable[Row]:
    """Questions and conclusions of medical papers, and the abstract's rest (PubMedQA, MIT)."""
    for row in rows(data, "pubmedqa", "train"):
        yield {"anchor": row["question"], "positive": row["context"][:900]}
        yield {"anchor": row["long_answer"][:400], "positive": row["context"][:900]}


def medical(data: Path, limit: int = 8_000) -> Iterable[Row]:
    """What medical answers say after their first 700 characters, in pieces of about as many (MedQuAD, CC BY)."""
    pieces = set()
    for answer in sorted({row["answer"] for row in rows(data, "medquad", "train")}):
        piece = ""
        for sentence in SENTENCE_END.split(answer[700:])[1:]:  # the first one may be cut
            piece = f"{piece} {sentence}".strip()
            if len(piece) > 600:
                pieces.add(piece[:1000])
                piece = ""
    found = [{"text": piece} for piece in sorted(pieces)]
    random.Random(SEED).shuffle(found)
    return found[:limit]


def splits(data: Path) -> Iterable[Row]:
    """A sentence and the same in two (WikiSplit, CC BY-SA 4.0)."""
    found = (row for split in ("train", "dev", "test") for row in rows(data, "wiki_split", split))
    return ({"anchor": row["sentence1"], "positive": row["sentence2"]} for row in found)


def some_sentences(data: Path) -> Iterable[Row]:
    """The first of wiki_sentences: with the next two, what a teacher reads for llm2vec-tiny."""
    return islice(wiki_sentences(data), 50_000)


def some_passages(data: Path) -> Iterable[Row]:
    """The first of passages."""
    return islice(passages(data), 6_000)


def some_splits(data: Path) -> Iterable[Row]:
    """The first of splits."""
    return islice(splits(data), 6_000)


def sts_dev(data: Path) -> Iterable[Row]:
    """STS-B's dev split: never trained on, what settings and checkpoints are chosen by."""
    columns = ("sentence1", "sentence2", "score")
    return ({name: row[name] for name in columns} for row in rows(data, "stsb", "dev"))


SETS: tuple[Callable[[Path], Iterable[Row]], ...] = (
    wiki_text,
    wiki_text_dev,
    wiki_sentences,
    snli,
    neutral,
    passages,
    neighbours,
    questions,
    pubmed,
    medical,
    splits,
    some_sentences,
    some_passages,
    some_splits,
    sts_dev,
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets, <name>/<split>.jsonl.xz")
    parser.add_argument("--out", type=Path, default=Path("build/data"), help="folder of the files to write")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for make in SETS:
        written = [json.dumps(row, ensure_ascii=False) + "\n" for row in make(args.data)]
        (args.out / f"{make.__name__}.jsonl").write_text("".join(written), encoding="utf-8")
        print(f"{make.__name__}.jsonl: {len(written):,} rows")
