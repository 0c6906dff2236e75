"""Views of a file's pages: written to, cut, and used after the file is closed."""

import tempfile
from pathlib import Path

import numpy as np

import apr

with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "m.apr"
    values = np.arange(5000, dtype=np.float32)
    apr.save({"a": values, "b": values[:0]}, path)
    file = apr.load(path)
    array, stored = file.numpy("a"), file.raw("a")
    array[0] = array[-1] = 7  # a private copy of these pages
    file.close()
    del file
    assert array.sum() == values.sum() - values[-1] + 14
    assert np.frombuffer(stored, np.float32)[1:-1].tolist() == values[1:-1].tolist()
    del array
    assert stored[4:8].tobytes() == values[1].tobytes()
    assert apr.load(path).numpy("a").tolist() == values.tolist()
