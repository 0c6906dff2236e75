"""Other tools' token files: which format each is, and one error with file and byte for a damaged one."""

import struct
from pathlib import Path

import numpy as np
import pytest
from tests.data.token_writers import MEGATRON_CODES, WRITERS, datatrove, dolma, llmc, megatron, nanogpt

from apr.data.token_files import find_token_files, open_token_file
from apr.errors import AprError, FormatError, RefusedError, TruncatedError, UnsupportedError, UsageError

DOCUMENTS = [[5, 7, 300, 0], [9, 0], [400, 401, 402, 403, 0]] * 8
FLAT = [id_ for ids in DOCUMENTS for id_ in ids]
VOCABULARY = 512


def opened(path, vocab_size=VOCABULARY, dtype=None):
    return open_token_file(path, vocab_size, dtype)


def ends_of(file):
    return np.concatenate(list(file.ends())).tolist()


@pytest.mark.parametrize("format_", WRITERS)
def test_a_format_is_recognized_by_its_contents(format_, tmp_path):
    write, name = WRITERS[format_]
    file = opened(write(tmp_path / name, DOCUMENTS))
    assert (file.format, file.count) == (format_, len(FLAT))
    ids = np.fromfile(file.path, file.dtype, file.count, offset=file.start)
    assert ids.tolist() == FLAT
    if format_ in ("datatrove", "megatron", "dolma"):
        assert ends_of(file) == np.cumsum([len(ids) for ids in DOCUMENTS]).tolist()
    else:
        assert file.ends is None


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<i8"])
@pytest.mark.parametrize("vocabulary", [65, 512, 50_257, 151_936])
@pytest.mark.parametrize("count", [8, 100, 50_000])
def test_the_type_of_ids_without_a_header_is_told_by_the_vocabulary(dtype, vocabulary, count, tmp_path):
    ids = (np.random.default_rng(0).zipf(1.2, count) - 1) % min(vocabulary, 65_536)
    for name in ("a.bin", "b.npy", "c.ds"):
        ids.astype(dtype).tofile(tmp_path / name)
        assert opened(tmp_path / name, vocabulary).dtype == np.dtype(dtype)


@pytest.mark.parametrize("code", MEGATRON_CODES)
def test_every_type_of_megatron_is_read_or_refused(code, tmp_path):
    path = megatron(tmp_path / "a.bin", [[1, 2, 0], [3, 0]], code, sentences=1)
    if code in ("<f8", "<f4"):
        with pytest.raises(UnsupportedError, match="float") as error:
            opened(path)
        assert (Path(error.value.path).name, error.value.offset) == ("a.idx", 17)
    else:
        assert opened(path).dtype == np.dtype(code)


def test_documents_of_several_sequences_end_with_the_last(tmp_path):
    file = opened(megatron(tmp_path / "a.bin", DOCUMENTS, "<i4", sentences=2))
    assert ends_of(file) == np.cumsum([len(ids) for ids in DOCUMENTS]).tolist()


@pytest.mark.parametrize(
    ("item", "metadata"),
    [
        (2, "gpt2\n{count}\n1.00 kT"),  # versions before ids could have four bytes
        (4, "Unknown Tokenizer|4|4\n{count}\n1.00 kT"),
        (4, None),
        (2, None),
    ],
)
def test_bytes_of_an_id_of_datatrove(item, metadata, tmp_path):
    file = opened(datatrove(tmp_path / "a.ds", DOCUMENTS, item=item, metadata=metadata))
    assert (file.dtype.itemsize, file.count) == (item, len(FLAT))


def test_ids_after_the_last_listed_document_are_a_document(tmp_path):
    file = opened(dolma(tmp_path / "a.npy", DOCUMENTS, listed=-1))
    assert ends_of(file)[-1] == len(FLAT)


@pytest.mark.parametrize(
    ("name", "stands_for"),
    [
        ("a.ds.index", "a.ds"),
        ("a.ds.metadata", "a.ds"),
        ("b.idx", "b.bin"),
        ("b", "b.bin"),
        ("b.bin", "b.bin"),
        (".", "a.ds b.bin sub/c.npy"),
    ],
)
def test_a_path_stands_for_files_with_ids(name, stands_for, tmp_path):
    datatrove(tmp_path / "a.ds", DOCUMENTS)
    megatron(tmp_path / "b.bin", DOCUMENTS)
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "out").mkdir()
    dolma(tmp_path / "sub" / "c.npy", DOCUMENTS)
    nanogpt(tmp_path / "out" / "shard-00000.bin", DOCUMENTS)
    nanogpt(tmp_path / ".hidden" / "d.bin", DOCUMENTS)
    found = find_token_files([tmp_path / name], tmp_path / "out")
    assert [path.relative_to(tmp_path).as_posix() for path in found] == stands_for.split()


@pytest.mark.parametrize(
    "names", [("train.bin", "val.bin"), ("fineweb_train_000001.bin", "fineweb_val_0.bin")]
)
def test_a_directory_with_a_held_out_split_is_refused(names, tmp_path):
    for name in names:
        nanogpt(tmp_path / name, DOCUMENTS)
    with pytest.raises(UsageError, match=names[1]):
        find_token_files([tmp_path], tmp_path / "out")
    assert len(find_token_files([tmp_path / name for name in names], tmp_path / "out")) == 2


def test_a_file_given_twice_is_refused(tmp_path):
    megatron(tmp_path / "a.bin", DOCUMENTS)
    with pytest.raises(UsageError, match="twice"):
        find_token_files([tmp_path / "a.idx", tmp_path / "a.bin"], tmp_path / "out")


def edited(path, at, data):
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


COUNT = len(FLAT)
SEQUENCES = len(DOCUMENTS)
POINTERS = 34 + 4 * SEQUENCES
BOUNDARIES = POINTERS + 8 * SEQUENCES
# The format, what happens to a file, the file that the error names, its class and byte.
DAMAGED = {
    "llm.c cut": ("llm.c", lambda p: cut(p, 1100), "a.bin", TruncatedError, 1100),
    "llm.c cut header": ("llm.c", lambda p: cut(p, 600), "a.bin", TruncatedError, 600),
    "llm.c version": ("llm.c", lambda p: edited(p, 4, b"\2"), "a.bin", UnsupportedError, 4),
    "llm.c count": ("llm.c", lambda p: edited(p, 8, b"\1\0"), "a.bin", FormatError, 1026),
    "llm.c negative": ("llm.c", lambda p: edited(p, 8, b"\xff" * 4), "a.bin", FormatError, 8),
    "llm.c evaluation": (
        "llm.c",
        lambda p: edited(p, 0, struct.pack("<i", 20240522)),
        "a.bin",
        UnsupportedError,
        0,
    ),
    "datatrove torn": ("datatrove", lambda p: cut(p, 2 * COUNT - 1), "a.ds", TruncatedError, 2 * COUNT - 1),
    "datatrove cut": ("datatrove", lambda p: cut(p, 100), "a.ds", TruncatedError, 100),
    "datatrove long": (
        "datatrove",
        lambda p: p.write_bytes(p.read_bytes() + b"\0\0"),
        "a.ds",
        FormatError,
        2 * COUNT,
    ),
    "index torn": (
        "datatrove",
        lambda p: cut(Path(f"{p}.index"), 12),
        "a.ds.index",
        TruncatedError,
        8,
    ),
    "index short": ("datatrove", lambda p: cut(Path(f"{p}.index"), 16), "a.ds.index", FormatError, 8),
    "index order": (
        "datatrove",
        lambda p: edited(Path(f"{p}.index"), 8, b"\1"),
        "a.ds.index",
        FormatError,
        8,
    ),
    "metadata bytes": (
        "datatrove",
        lambda p: Path(f"{p}.metadata").write_text("t|8\n9\n9"),
        "a.ds.metadata",
        FormatError,
        0,
    ),
    "metadata count": (
        "datatrove",
        lambda p: Path(f"{p}.metadata").write_text("t|2\nmany"),
        "a.ds.metadata",
        FormatError,
        4,
    ),
    "megatron magic": (
        "megatron",
        lambda p: edited(p.with_suffix(".idx"), 0, b"X"),
        "a.idx",
        FormatError,
        0,
    ),
    "megatron old": (
        "megatron",
        lambda p: p.with_suffix(".idx").write_bytes(b"TNTIDX\0\0" + bytes(40)),
        "a.idx",
        UnsupportedError,
        0,
    ),
    "megatron version": (
        "megatron",
        lambda p: edited(p.with_suffix(".idx"), 9, b"\2"),
        "a.idx",
        UnsupportedError,
        9,
    ),
    "megatron type": (
        "megatron",
        lambda p: edited(p.with_suffix(".idx"), 17, b"\x63"),
        "a.idx",
        FormatError,
        17,
    ),
    "megatron cut header": (
        "megatron",
        lambda p: cut(p.with_suffix(".idx"), 20),
        "a.idx",
        TruncatedError,
        20,
    ),
    "megatron cut index": (
        "megatron",
        lambda p: cut(p.with_suffix(".idx"), 200),
        "a.idx",
        TruncatedError,
        200,
    ),
    "megatron counts": (
        "megatron",
        lambda p: edited(p.with_suffix(".idx"), 18, b"\xff" * 8),
        "a.idx",
        TruncatedError,
        BOUNDARIES + 8 * (SEQUENCES + 1),
    ),
    "megatron length": (
        "megatron",
        lambda p: edited(p.with_suffix(".idx"), 38, b"\xff" * 4),
        "a.idx",
        FormatError,
        38,
    ),
    "megatron pointer": (
        "megatron",
        lambda p: edited(p.with_suffix(".idx"), POINTERS + 16, b"\1"),
        "a.idx",
        FormatError,
        POINTERS + 16,
    ),
    "megatron boundary": (
        "megatron",
        lambda p: edited(p.with_suffix(".idx"), BOUNDARIES + 16, b"\0"),
        "a.idx",
        FormatError,
        BOUNDARIES + 16,
    ),
    "megatron first": (
        "megatron",
        lambda p: edited(p.with_suffix(".idx"), BOUNDARIES, b"\1"),
        "a.idx",
        FormatError,
        BOUNDARIES,
    ),
    "megatron last": (
        "megatron",
        lambda p: edited(p.with_suffix(".idx"), BOUNDARIES + 8 * SEQUENCES, bytes([SEQUENCES - 1])),
        "a.idx",
        FormatError,
        BOUNDARIES + 8 * SEQUENCES,
    ),
    "megatron cut": ("megatron", lambda p: cut(p, 10), "a.bin", TruncatedError, 10),
    "dolma torn": ("dolma", lambda p: cut(p, 2 * COUNT - 1), "a.npy", TruncatedError, 2 * COUNT - 2),
    "dolma cut": ("dolma", lambda p: cut(p, 2 * COUNT - 2), "a.npy", TruncatedError, 2 * COUNT - 2),
    "dolma listing": (
        "dolma",
        lambda p: p.with_name("a.csv.gz").write_bytes(p.with_name("a.csv.gz").read_bytes()[:-12]),
        "a.csv.gz",
        FormatError,
        None,
    ),
    "npy header": ("npy", lambda p: edited(p, 12, b"\xff" * 8), "a.npy", FormatError, 128),
    "npy version": ("npy", lambda p: edited(p, 6, b"\7"), "a.npy", FormatError, 8),
    "npy cut": ("npy", lambda p: cut(p, 200), "a.npy", TruncatedError, 200),
    "npy cut header": ("npy", lambda p: cut(p, 40), "a.npy", FormatError, 40),
    "npy long": (
        "npy",
        lambda p: p.write_bytes(p.read_bytes() + b"\0"),
        "a.npy",
        FormatError,
        128 + 8 * COUNT,
    ),
    "empty": ("nanogpt", lambda p: cut(p, 0), "a.bin", FormatError, 0),
    "torn": ("nanogpt", lambda p: cut(p, 2 * COUNT - 1), "a.bin", TruncatedError, 2 * COUNT - 2),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_one_error_with_file_and_byte(case, tmp_path):
    format_, damage, file, class_, offset = DAMAGED[case]
    write, name = WRITERS[format_]
    path = write(tmp_path / name, DOCUMENTS)
    damage(path)
    with pytest.raises(AprError) as error:
        opened(path)
    assert type(error.value) is class_
    assert error.value.path == str(tmp_path / file)
    assert error.value.offset == offset
    assert "\n" not in str(error.value)
    assert offset is None or class_ is UnsupportedError or str(error.value).startswith(f"{tmp_path / file}: ")


@pytest.mark.parametrize(
    ("array", "class_"),
    [
        (np.zeros(40, "f4"), UnsupportedError),
        (np.zeros(40, "?"), UnsupportedError),
        (np.zeros(40, "U3"), UnsupportedError),
        (np.asfortranarray(np.zeros((5, 8), "u2")), UnsupportedError),
        (np.zeros(0, "u2"), FormatError),
        (np.zeros(3, [("a", "u2"), ("b", "u2")]), UnsupportedError),
    ],
)
def test_arrays_of_something_else_are_refused(array, class_, tmp_path):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(class_):
        opened(tmp_path / "a.npy")


def test_rows_of_an_array_are_joined_and_said_to_be(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(60, dtype=">i4").reshape(6, 10))
    file = opened(tmp_path / "a.npy")
    assert (file.count, file.dtype.str) == (60, ">i4")
    assert "(6, 10)" in file.notes[0]


def test_ids_of_a_multimodal_index_are_refused(tmp_path):
    assert opened(megatron(tmp_path / "a.bin", DOCUMENTS, modes=0)).count == COUNT
    with pytest.raises(UnsupportedError, match="multimodal") as error:
        opened(megatron(tmp_path / "a.bin", DOCUMENTS, modes=1))
    assert error.value.offset == BOUNDARIES + 8 * (SEQUENCES + 1)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"This is a text, and not any ids at all.\n" * 9, "text"),
        (np.arange(400, dtype=">u4").tobytes(), "big-endian"),
        (np.random.default_rng(0).zipf(1.3, 400).clip(0, 500).astype("<f4").tobytes(), "floats"),
        (b"PK\3\4" + bytes(90), "ZIP"),
    ],
)
def test_files_of_something_else_are_refused_by_name(content, what, tmp_path):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(RefusedError, match=what):
        opened(tmp_path / "a.bin")


def test_a_type_that_the_bytes_contradict_is_refused(tmp_path):
    ids = np.random.default_rng(0).zipf(1.3, 4000) % 500
    ids.astype("<u4").tofile(tmp_path / "a.bin")
    with pytest.raises(RefusedError, match="uint32"):
        opened(tmp_path / "a.bin", dtype="uint16")
    with pytest.raises(UsageError, match="uint16"):
        opened(llmc(tmp_path / "b.bin", DOCUMENTS), dtype="uint32")
    assert opened(tmp_path / "a.bin", dtype="int32").dtype == np.dtype("<i4")


def test_a_shard_is_not_imported_but_other_arrays_under_its_name_are(tmp_path):
    ids = np.random.default_rng(0).zipf(1.3, 4000) % 500
    ids.astype("<u4").tofile(tmp_path / "shard-00000.bin")
    with pytest.raises(RefusedError, match="already"):
        opened(tmp_path / "shard-00000.bin")
    ids.astype("<u2").tofile(tmp_path / "shard-00000.bin")
    assert opened(tmp_path / "shard-00000.bin").dtype == np.dtype("<u2")


@pytest.mark.parametrize("item", [2, 4])
def test_files_of_datatrove_are_what_it_writes_itself(item, tmp_path):
    tokens = pytest.importorskip("datatrove.pipeline.tokens.tokenizer", reason="datatrove is not installed")
    real = tokens.TokenizedFile(str(tmp_path / "real"), "a.ds", save_final_metadata=True, token_size=item)
    for ids in DOCUMENTS:
        real.write(ids, None)
    real.close()
    (tmp_path / "ours").mkdir()
    datatrove(tmp_path / "ours" / "a.ds", DOCUMENTS, item=item)
    for name in ("a.ds", "a.ds.index"):
        assert (tmp_path / "real" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()
    file = opened(tmp_path / "real" / "a.ds")
    assert (file.count, file.dtype.itemsize) == (COUNT, item)
    assert ends_of(file) == np.cumsum([len(ids) for ids in DOCUMENTS]).tolist()


@pytest.mark.parametrize(("item", "dtype"), [(2, "<u2"), (4, "<i4")])
def test_files_of_megatron_are_what_datatrove_writes(item, dtype, tmp_path):
    tokens = pytest.importorskip(
        "datatrove.pipeline.tokens.megatron_tokenizer", reason="datatrove is not installed"
    )
    real = tokens.MegatronTokenizedFile(str(tmp_path / "real"), "a", token_size=item)
    for ids in DOCUMENTS:
        real.write(ids)
    real.close()
    (tmp_path / "ours").mkdir()
    megatron(tmp_path / "ours" / "a.bin", DOCUMENTS, dtype)
    for name in ("a.bin", "a.idx"):
        assert (tmp_path / "real" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()
    assert opened(tmp_path / "real" / "a.bin").dtype == np.dtype(dtype)


@pytest.mark.parametrize("format_", ["megatron", "datatrove"])
@pytest.mark.parametrize("beside", [False, True])
def test_an_index_whose_data_a_directory_does_not_have_is_named(format_, beside, tmp_path):
    write, name = WRITERS[format_]
    lost = write(tmp_path / f"lost-{name}", DOCUMENTS)
    lost.unlink()
    if beside:
        write(tmp_path / name, DOCUMENTS)
    with pytest.raises(FileNotFoundError) as caught:
        [opened(file) for file in find_token_files([tmp_path], tmp_path / "out")]
    assert caught.value.filename == str(lost)


def test_another_tools_idx_file_is_not_an_index(tmp_path):
    nanogpt(tmp_path / "a.bin", DOCUMENTS)
    (tmp_path / "pack.idx").write_bytes(b"\xfftOc")
    assert find_token_files([tmp_path], tmp_path / "out") == [tmp_path / "a.bin"]
