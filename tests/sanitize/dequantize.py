"""Values quantized from an array and dequantized into one, the whole tensor and parts of it."""

import tempfile
from pathlib import Path

import numpy as np

import apr
from apr._core import Container

with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "m.apr"
    values = np.linspace(-1, 1, 33 << 10, dtype=np.float32)  # more than one thread makes at a time
    apr.save({kind: apr.quantize(values, kind) for kind in ("q4", "q8")}, path)
    container = Container(path)
    for kind, error in (("q4", 0.08), ("q8", 0.005)):
        whole = np.zeros_like(values)
        container.dequantize(kind, 0, whole)
        assert abs(whole - values).max() < error
        part = np.zeros(77, np.float32)
        container.dequantize(kind, len(values) - len(part), part)
        assert np.array_equal(part, whole[-len(part) :])
