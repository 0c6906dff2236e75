"""Files read into arrays: to the last byte, several at once, one array twice, and ids of shards."""

import tempfile
from pathlib import Path

import numpy as np

import apr
from apr._core import Container, TokenStream

with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "m.apr"
    size = (1 << 20) + 3  # more than one thread reads at a time
    values = np.arange(size, dtype=np.uint8)
    apr.save({"a": values}, path)
    container = Container(path)
    offset = container.info("a")[3]
    outs = [np.zeros(n, np.uint8) for n in (size, 1, 0, 4096)]
    container.read([(offset, out) for out in outs] + [(offset, outs[0])])
    assert all(np.array_equal(out, values[: len(out)]) for out in outs)
    container.read([(offset, memoryview(container.map())[:64])])

    shards = [(Path(directory) / f"{number}.bin", 100) for number in range(3)]
    for shard, count in shards:
        np.arange(count, dtype="<u4").tofile(shard)
    stream, ids = TokenStream(shards), np.zeros(250, "<u4")
    stream.read(0, ids)
    stream.gather([0, 90, 245], ids[:150])
    assert ids[:150].tolist() == [n % 100 for start in (0, 90, 245) for n in range(start, start + 50)]
