"""Experiments: which of LLM2Vec's steps gives what, on your decoder and your data.

ablation.py        setups x poolings x seeds, resumable cell by cell
masked_tokens.py   how many masked tokens a model predicts right: a kind of task
layers.py          how far hidden states move when the causal mask is removed, layer by layer
report.py          one table with paired-bootstrap intervals, plots, Markdown and HTML
"""
