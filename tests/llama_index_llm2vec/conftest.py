"""The marker of the conformance suite."""

from __future__ import annotations


def pytest_configure(config):
    config.addinivalue_line("markers", "needs(abilities): what a vector store must be able to do")
