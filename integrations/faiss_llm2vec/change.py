"""What a commit does, as the store hands it to its contents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from faiss_llm2vec.kinds import Vectors
from faiss_llm2vec.records import Document, Documents
from faiss_llm2vec.segments import Segment


@dataclass
class Change:
    """What a commit does.

    Attributes:
        remove: ids of documents to delete.
        documents, vectors: documents to insert, and their vectors (len(documents), dimension).
        model_dimension: dimension of those vectors before the store cut them.
        relabel: documents to put in place of those with these ids, keeping their vectors.
        merge: segments to replace by a new one.
        model: name and revision of the model, for a store that does not have them yet.
    """

    remove: Sequence[int] = ()
    documents: Documents = field(default_factory=lambda: Documents.of([]))
    vectors: Vectors | None = None
    model_dimension: int | None = None
    relabel: Mapping[int, Document] = field(default_factory=dict)
    merge: Sequence[Segment] = ()
    model: tuple[str | None, str | None] = (None, None)
