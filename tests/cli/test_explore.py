"""`explore` writes one page with everything in it; test_browser.py, in tests_databases, looks at it in a browser."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from faiss_llm2vec import FaissStore

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> <!-- <script>"


def shown(path):
    """The data in a page, read as a browser reads it: up to the first end tag of the element."""
    page = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script', page, re.DOTALL).group(1))


@pytest.fixture
def store(tmp_path):
    angles = np.linspace(0, 1.5, 30)
    with FaissStore.create(tmp_path / "store", None) as store:
        store.add(
            [f"text {n}" if n != 7 else EVIL for n in range(30)],
            ids=[f"d{n}" for n in range(30)],
            metadata=[{"n": n, "half": "low" if n < 15 else EVIL} for n in range(30)],
            vectors=np.stack([np.cos(angles), np.sin(angles)], axis=1),
        )
        store.delete(["d0"])
    return tmp_path / "store"


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_a_page_holds_texts_points_and_true_neighbours(command, store, tmp_path, method):
    done = command("explore", store, "-o", tmp_path / "page.html", "--color-by", "half", "--method", method)
    assert done.code == 0, done.err
    assert "29 of 29 texts" in done.err
    data = shown(tmp_path / "page.html")
    assert data["ids"] == [f"d{n}" for n in range(1, 30)]
    assert data["texts"][6] == EVIL
    assert data["metadata"][6] == {"n": 7, "half": "low"}
    assert data["field"] == "half"
    points = np.array(data["points"])
    assert points.shape == (29, 2)
    assert points.min() >= 0
    assert points.max() <= 1
    # On an arc, the nearest are those beside it; row 0 is d1.
    assert set(data["nearest"][10][:2]) == {9, 11}
    assert data["nearest"][0][:3] == [1, 2, 3]
    assert data["scores"][0][0] == pytest.approx(np.cos(1.5 / 29), abs=1e-3)
    assert all(row not in near for row, near in enumerate(data["nearest"]))


def test_a_page_cannot_be_broken_out_of_and_asks_nobody(command, store, tmp_path):
    command("explore", store, "-o", tmp_path / "page.html", "--color-by", "half")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert EVIL not in page
    assert page.count("<script") == page.count("</script") == 2
    assert "innerHTML" not in page
    assert "default-src 'none'" in page
    assert not re.search(r"https?://", page)


def test_a_filter_and_a_limit(command, store, tmp_path):
    arguments = ("explore", store, "-o", tmp_path / "page.html", "--where", '{"n": {"$gte": 10}}')
    assert "20 of 20" in command(*arguments).err
    assert "8 of 20" in command(*arguments, "--limit", 8, "--neighbours", 3).err
    first = shown(tmp_path / "page.html")
    assert len(first["texts"]) == len(first["nearest"]) == 8
    assert {len(near) for near in first["nearest"]} == {3}
    command(*arguments, "--limit", 8)
    assert shown(tmp_path / "page.html")["ids"] == first["ids"]


@pytest.mark.parametrize("documents", [1, 2, 3, 5])
def test_very_few_documents(command, tmp_path, documents):
    with FaissStore.create(tmp_path / "store", None) as store:
        store.add([f"text {n}" for n in range(documents)], vectors=np.eye(documents, 6))
    assert command("explore", tmp_path / "store", "-o", tmp_path / "page.html").code == 0
    assert {len(near) for near in shown(tmp_path / "page.html")["nearest"]} == {documents - 1}


def test_what_cannot_be_shown_says_why_and_writes_nothing(command, store, tmp_path):
    page = tmp_path / "page.html"
    done = command("explore", store, "-o", page, "--color-by", "colour")
    assert (done.code, "no document has a field 'colour'. There are half, n." in done.err) == (1, True)
    done = command("explore", store, "-o", page, "--where", '{"n": 99}')
    assert (done.code, "there are no documents to show" in done.err) == (1, True)
    assert command("explore", store, "-o", page, "--method", "umap").code == 2
    assert command("explore", tmp_path / "nothing", "-o", page).code == 1
    assert command("explore", store, "-o", tmp_path).code == 2  # a folder is no page
    assert not page.exists()


def test_clusters_are_named_by_words_that_the_others_lack(command, tmp_path):
    kinds = {
        "bears": "the bears sleep in caves",
        "rates": "the bank raised rates",
        "bread": f"bread needs flour {EVIL}",
    }
    texts = [f"{text} number {n}" for text in kinds.values() for n in range(40)]
    vectors = np.repeat(np.eye(3), 40, axis=0) + np.random.default_rng(0).normal(size=(120, 3)) / 50
    with FaissStore.create(tmp_path / "store", None) as store:
        store.add(texts, vectors=vectors)
    assert command("explore", tmp_path / "store", "-o", tmp_path / "page.html", "--method", "pca").code == 0
    data = shown(tmp_path / "page.html")
    assert 3 <= len(data["labels"]) <= 12
    for x, y, words in data["labels"]:
        nearest = min(range(120), key=lambda row: np.hypot(data["points"][row][0] - x, data["points"][row][1] - y))
        assert all(word in texts[nearest] for word in words.split(", "))
        assert "number" not in words
    assert command("explore", tmp_path / "store", "-o", tmp_path / "page.html", "--limit", 20).code == 0
    assert shown(tmp_path / "page.html")["labels"] == []  # too few to have clusters


def test_texts_without_words_have_no_labels(command, tmp_path):
    with FaissStore.create(tmp_path / "store", None) as store:
        store.add([f"{n} + {n}" for n in range(40)], vectors=np.random.default_rng(0).normal(size=(40, 4)))
    assert command("explore", tmp_path / "store", "-o", tmp_path / "page.html", "--method", "pca").code == 0
    assert shown(tmp_path / "page.html")["labels"] == []
