"""Tensors made through DLPack: they outlive the file and the mapping; unused capsules are freed."""

import tempfile
from pathlib import Path

import numpy as np

import apr
from apr._core import Container


class Capsule:
    """What `numpy.from_dlpack` asks for."""

    def __init__(self, capsule):
        self.capsule = capsule

    def __dlpack__(self, **_):
        return self.capsule

    def __dlpack_device__(self):
        return 1, 0


with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "m.apr"
    values = np.arange(5000, dtype=np.float32).reshape(50, 100)
    apr.save({"a": values}, path)
    container = Container(path)
    pages = container.map()
    tensor = np.from_dlpack(Capsule(container.dlpack("a", pages)))
    unused = container.dlpack("a", pages)
    del container, pages, unused
    assert np.array_equal(tensor, values)
    part = tensor[10:20, ::3]
    del tensor
    assert np.array_equal(part, values[10:20, ::3])
