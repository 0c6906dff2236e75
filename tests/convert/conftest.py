"""Fixtures of the tests of conversions."""

import pytest


@pytest.fixture
def llama_cpp():
    """Skip where llama.cpp is not installed."""
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: uv pip install xllamacpp")
