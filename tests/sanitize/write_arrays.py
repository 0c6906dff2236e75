"""Arrays written to files: by the writer of known sizes and by the streaming one, given up and finished."""

import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np

import apr

with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "m.apr"
    tensors = {
        "large": np.arange((256 << 10) + 5, dtype=np.uint8),  # more than is hashed at a time
        "scalar": np.float64(1),
        "empty": np.zeros((0, 3), np.int32),
    }
    apr.save({name: np.asarray(values) for name, values in tensors.items()}, path)
    assert apr.verify(path).ok
    with apr.Writer(path) as writer:
        for name, values in tensors.items():
            writer.add(name, np.asarray(values))
    file = apr.load(path)
    assert all(np.array_equal(file.numpy(name), values) for name, values in tensors.items())
    with suppress(ValueError), apr.Writer(path) as writer:
        writer.add("a", tensors["large"])
        writer.add("a", tensors["large"])  # given twice
    assert apr.verify(path).ok
