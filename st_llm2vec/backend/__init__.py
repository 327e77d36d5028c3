"""Everything that makes a decoder fast without changing its vectors; `LLM2VecTransformer.status` says what is on.

Each mechanism is accepted by one rule (equivalence.py): it moves the vectors of probe texts no further than the plain
path does by itself.
"""
