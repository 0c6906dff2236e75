"""Shards on a background thread, and the digits of their names."""

import numpy as np
import pytest
from tests.data.directories import read_json

from apr.data.shard_writer import CorpusPosition, ShardWriter, name_digits
from apr.errors import RefusedError


@pytest.mark.parametrize(
    ("tokens", "digits"), [(None, 5), (0, 5), (9_000_000, 5), (9_000_001, 6), (10**9, 6)]
)
def test_six_digits_are_used_if_five_might_not_suffice(tokens, digits):
    assert name_digits(tokens, shard_tokens=100) == digits


def writer(directory, digits=5, rows=()):
    def manifest(rows, position):
        return {"shard_count": len(rows), "total_documents": position.documents}

    return ShardWriter(directory, rows, digits, manifest)


def test_every_shard_is_followed_by_the_manifest_that_counts_it(tmp_path):
    with writer(tmp_path) as shards:
        for number in range(3):
            shards.write([np.arange(number + 1, dtype="<u4")] * 2, 1, CorpusPosition(documents=number + 1))
            shards.wait()
            assert read_json(tmp_path) == {"shard_count": number + 1, "total_documents": number + 1}
    assert [row["tokens"] for row in shards.rows] == [2, 4, 6]
    assert np.fromfile(tmp_path / "shard-00001.bin", "<u4").tolist() == [0, 1, 0, 1]


def test_a_number_with_too_many_digits_is_refused(tmp_path):
    rows = [{"name": f"shard-{number:04}.bin", "tokens": 1} for number in range(10_000)]
    with writer(tmp_path, digits=4, rows=rows) as shards, pytest.raises(RefusedError, match="10000"):
        shards.write([np.arange(1, dtype="<u4")], 1, CorpusPosition())


def test_an_error_of_the_thread_is_raised_by_the_next_call(tmp_path):
    with writer(tmp_path / "gone") as shards:
        shards.write([np.arange(1, dtype="<u4")], 1, CorpusPosition())
        with pytest.raises(FileNotFoundError):
            shards.write([np.arange(1, dtype="<u4")], 1, CorpusPosition())
