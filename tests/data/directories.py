"""Shard directories for the tests of `apr.data`: what they contain, and how a test edits them."""

import json
from pathlib import Path

import numpy as np

# A Llama tokenizer with 512 tokens; id 0 is <|endoftext|>.
TOKENIZER = Path(__file__).parents[1] / "fixtures" / "imported-0.72" / "hf_llama_tied"


def write_shard(path, ids):
    np.asarray(ids, "<u4").tofile(path)


def file_bytes(directory):
    """The contents of every file of a directory by its name."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def read_json(directory):
    """The manifest of a directory as plain JSON."""
    return json.loads((directory / "manifest.json").read_bytes())


def edit_json(directory, **changes):
    """Replace keys of the manifest, as a text editor would."""
    (directory / "manifest.json").write_text(json.dumps(read_json(directory) | changes))
