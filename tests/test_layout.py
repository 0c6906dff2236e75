"""Shards that are arrays of another type, or not arrays at all: each is named, and ids never are."""

import gzip
import io
import zipfile

import ml_dtypes
import numpy as np
import pytest
from tests.data.directories import file_bytes

from apr.cli import main
from apr.data import ShardDir, repair
from apr.errors import RefusedError
from apr.layout import foreign_layout

# The upper bound of each is the size of a real vocabulary, or of its characters.
VOCABULARIES = (65, 512, 4096, 32_000, 50_257, 151_936)


def text(vocabulary, tokens=20_000, seed=0):
    """Ids of which few are frequent, in any order of their numbers."""
    random = np.random.default_rng(seed)
    return random.permutation(vocabulary)[(random.zipf(1.2, tokens) - 1) % vocabulary]


def npy(ids):
    stream = io.BytesIO()
    np.save(stream, ids.astype("<u4"))
    return stream.getvalue()


def npz(ids):
    stream = io.BytesIO()
    np.savez(stream, ids.astype("<u4"))
    return stream.getvalue()


def archive(ids):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("data.pkl", ids.tobytes())
    return stream.getvalue()


def with_labels(ids):
    return np.where(np.arange(len(ids)) % 3 == 0, -100, ids)


FOREIGN = {
    "int64": (lambda ids: ids.astype("<i8").tobytes(), "64-bit integers"),
    "int64 with -100": (lambda ids: with_labels(ids).astype("<i8").tobytes(), "64-bit integers"),
    "big-endian int64": (lambda ids: ids.astype(">i8").tobytes(), "big-endian 64-bit integers"),
    "big-endian uint32": (lambda ids: ids.astype(">u4").tobytes(), "big-endian 32-bit integers"),
    "int32 with -100": (lambda ids: with_labels(ids).astype("<i4").tobytes(), "negative"),
    "float32": (lambda ids: ids.astype("<f4").tobytes(), "32-bit floats"),
    "big-endian float32": (lambda ids: ids.astype(">f4").tobytes(), "big-endian 32-bit floats"),
    "float64": (lambda ids: ids.astype("<f8").tobytes(), "64-bit floats"),
    "bfloat16": (lambda ids: ids.astype(ml_dtypes.bfloat16).tobytes(), "bfloat16"),
    "npy": (npy, "NumPy"),
    "npz": (npz, "ZIP"),
    "pt": (archive, "ZIP"),
    "text": (lambda ids: " ".join(map(str, ids)).encode(), "text"),
    "JSON lines": (lambda ids: b'{"text": "na\xc3\xafve"}\n' * len(ids), "text"),
    "gzip": (lambda ids: gzip.compress(ids.astype("<u4").tobytes(), mtime=0), "gzip"),
    "encrypted": (lambda ids: np.random.default_rng(len(ids)).bytes(4 * len(ids)), "without a pattern"),
}
# Numbers of 16 bits hold no larger vocabulary.
FOREIGN_16 = {
    "uint16": (lambda ids: ids.astype("<u2").tobytes(), "16-bit integers"),
    "big-endian uint16": (lambda ids: ids.astype(">u2").tobytes(), "big-endian 16-bit integers"),
    "float16": (lambda ids: ids.astype("<f2").tobytes(), "float16"),
}


def whole_words(content):
    return content[: len(content) // 4 * 4]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_every_foreign_layout_is_named(vocabulary, tmp_path):
    path = tmp_path / "shard-00000.bin"
    for tokens in (300, 20_000):
        ids = text(vocabulary, tokens)
        layouts = FOREIGN | (FOREIGN_16 if vocabulary < 2**16 else {})
        for kind, (encoded, name) in layouts.items():
            content = encoded(ids)
            if kind == "encrypted" and tokens < 1000:
                continue  # nothing tells so few bytes from numbers
            path.write_bytes(content)
            assert name in (foreign_layout(path) or "nothing"), (kind, tokens)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("tokens", [1, 2, 16, 40, 300, 20_000])
def test_ids_are_never_taken_for_another_layout(vocabulary, tokens, tmp_path):
    path = tmp_path / "shard-00000.bin"
    random = np.random.default_rng(tokens)
    for ids in (
        text(vocabulary, tokens, seed=tokens),
        random.integers(0, vocabulary, tokens),
        np.sort(text(vocabulary, tokens)),
        np.arange(tokens) % vocabulary,
        np.full(tokens, vocabulary - 1),
    ):
        ids.astype("<u4").tofile(path)
        assert foreign_layout(path) is None


def shards(path, contents):
    path.mkdir()
    for i, content in enumerate(contents):
        (path / f"shard-{i:05}.bin").write_bytes(content)
    return path


@pytest.mark.parametrize("kind", [*FOREIGN, *FOREIGN_16])
def test_verify_names_the_shard_and_its_layout(kind, tmp_path, capsys):
    encoded, name = (FOREIGN | FOREIGN_16)[kind]
    ids = text(4096)
    path = shards(
        tmp_path / "shards",
        [ids.astype("<u4").tobytes(), whole_words(encoded(ids)), ids.astype("<u4").tobytes()],
    )
    before = file_bytes(path)
    assert main(["repair-manifest", str(path), "--verify"]) == 5
    printed = capsys.readouterr()
    assert "shard-00001.bin" in printed.err
    assert name in printed.err
    assert "NOT suitable" in printed.out
    assert file_bytes(path) == before


def test_int64_ids_fail_even_where_every_second_id_is_a_legal_half(tmp_path):
    # Exactly half of all words are 0: no more than a most frequent id may have.
    path = shards(tmp_path / "shards", [text(4096).astype("<i8").tobytes()])
    (problem,) = repair(path, verify=True).problems
    assert "64-bit integers" in problem


@pytest.mark.parametrize("flags", [[], ["--truncate-torn"]])
def test_a_foreign_file_is_not_offered_to_be_cut(flags, tmp_path, capsys):
    content = b"one line of text, and another\n" * 99 + b"abc"
    path = shards(tmp_path / "shards", [content[: len(content) // 4 * 4 + 1]])
    assert main(["repair-manifest", str(path), *flags]) == 5
    error = capsys.readouterr().err
    assert "text" in error
    assert "--truncate-torn" not in error
    with pytest.raises(RefusedError, match="text"):
        ShardDir(path)
    assert [file.name for file in path.iterdir()] == ["shard-00000.bin"]
