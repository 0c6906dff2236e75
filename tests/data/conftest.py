"""Fixtures of the tests of `apr.data`."""

import numpy as np
import pytest
from tests.data.directories import write_shard


@pytest.fixture
def directory(tmp_path):
    """Three shards of text-like ids below 512, as a killed encoder leaves them: without a manifest."""
    path = tmp_path / "shards"
    path.mkdir()
    ids = np.random.default_rng(0).zipf(1.3, 850) % 511 + 1
    for i, part in enumerate(np.split(ids, (300, 700))):
        write_shard(path / f"shard-{i:05d}.bin", part)
    return path
