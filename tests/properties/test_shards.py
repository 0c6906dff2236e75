"""What holds of every corpus and every shard directory."""

import json
from contextlib import suppress

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

import apr
from apr.cli import main
from apr.data import ShardDir, repair
from apr.data.byte_level import Vocabulary
from apr.data.encode import encode_corpus
from apr.data.encode_options import EncodeOptions
from apr.data.listing import list_shards
from apr.data.manifest import check_manifest
from apr.data.pre_tokenizers import PRE_TYPES
from apr.errors import AprError, RefusedError
from apr.testing import shard_directories

# What pre-tokenizers treat apart: letters, digits, marks, every kind of white space, controls, emoji.
SPECIAL = "aZ9 \t\n\r\x0b\x0c\x1c\x85\xa0\u2028\u3000'.,_<|>é\u0301İß東\u0660½\U0001f600\x00\ufeff"
TEXT = st.text(st.one_of(st.sampled_from(SPECIAL), st.characters(exclude_categories=["Cs"])), max_size=60)
MERGES = [("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("a", "a"), ("Ġ", "a"), ("9", "9"), ("Ċ", "Ċ"), (".", "Ċ"), ("Ã", "©")]


def vocabulary(kind):
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<|endoftext|>", *sorted(ByteLevel.alphabet()), *(a + b for a, b in MERGES)]
    return Vocabulary(
        {token: id_ for id_, token in enumerate(tokens)}, MERGES, kind, ("<|endoftext|>",), None
    )


def model_file(path, kind):
    found = vocabulary(kind)
    metadata = {
        "tokenizer.vocabulary": list(found.ids),
        "tokenizer.merges": [f"{a} {b}" for a, b in MERGES],
        "tokenizer.pre_type": kind,
        "tokenizer.eos_token_id": 0,
    }
    apr.save({"w": np.zeros(1, np.float32)}, path, metadata)
    return path


@given(
    texts=st.lists(TEXT, min_size=1, max_size=8),
    shard_tokens=st.integers(1, 40),
    policy=st.sampled_from(["none", "between", "after"]),
    kind=st.sampled_from(list(PRE_TYPES)),
)
@example(texts=["<|endoftext|>", "", "a"], shard_tokens=1, policy="between", kind="gpt-2")
def test_the_stream_is_what_the_tokenizers_package_gives(texts, shard_tokens, policy, kind, tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    (directory / "c.jsonl").write_text("".join(json.dumps({"content": text}) + "\n" for text in texts))
    options = EncodeOptions(
        (str(directory / "c.jsonl"),),
        model_file(directory / "m.apr", kind),
        directory / "out",
        eos_policy=policy,
        shard_tokens=shard_tokens,
    )
    reference = vocabulary(kind).build(directory)
    reference.encode_special_tokens = True
    expected = []
    for number, text in enumerate(texts):
        expected += [0] * (policy == "between" and number > 0)
        expected += reference.encode(text, add_special_tokens=False).ids
        expected += [0] * (policy == "after")
    if not expected:
        return
    made = encode_corpus(options)
    shards = ShardDir(directory / "out")
    assert shards.read(0, shards.total_tokens).tolist() == expected
    assert made.manifest["total_tokens"] == len(expected)
    # Only the last shard may be smaller than shard_tokens.
    assert all(shard.tokens >= shard_tokens for shard in shards.shards[:-1])
    assert made.manifest["total_documents"] == len(texts)
    if kind != "qwen2":
        decoded = reference.decode(expected, skip_special_tokens=False)
        ends = {"none": "", "between": "<|endoftext|>", "after": "<|endoftext|>"}[policy]
        assert decoded == ends.join(texts) + ends * (policy == "after")


@given(directory=shard_directories(), data=st.data())
def test_any_range_of_any_directory_is_that_of_its_files(directory, data):
    shards = ShardDir(directory)
    stored = np.concatenate([np.fromfile(path, "<u4") for path in sorted(directory.glob("shard-*.bin"))])
    start = data.draw(st.integers(0, len(stored)), label="start")
    count = data.draw(st.integers(0, len(stored) - start), label="count")
    assert shards.read(start, count).tolist() == stored[start : start + count].tolist()
    assert main(["repair-manifest", str(directory), "--verify"]) == 0


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=6), verify=st.booleans())
def test_a_directory_is_repaired_or_refused_with_the_shard(sizes, verify, tmp_path_factory):
    directory = tmp_path_factory.mktemp("shards")
    for number, size in enumerate(sizes):
        (directory / f"shard-{number:05d}.bin").write_bytes((b"\x07\0\0\0\x08\0\0\0\x09\0\0\0" * 9)[:size])
    sound = all(size and size % 4 == 0 for size in sizes)
    try:
        report = repair(directory, verify=verify)
    except RefusedError as error:
        assert not sound
        assert "shard-" in str(error)
        assert not (directory / "manifest.json").exists()
        return
    assert sound
    if report.ok:
        assert ShardDir(directory).total_tokens == sum(sizes) // 4
        assert check_manifest(report.manifest, list_shards(directory)) == []
    else:
        assert not (directory / "manifest.json").exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
KEYS = ["schema", "shard_count", "total_tokens", "shards", "complete", "vocab_size", "scan", "eos_token_id"]


@given(manifest=st.one_of(JSON, st.dictionaries(st.sampled_from(KEYS), JSON)), force=st.booleans())
@example(
    manifest={"schema": "pretokenize-bin-v1", "shard_count": 1, "total_tokens": 4, "shards": [3]}, force=False
)
def test_any_manifest_is_read_repaired_or_refused(manifest, force, tmp_path_factory):
    directory = tmp_path_factory.mktemp("shards")
    np.arange(4, dtype="<u4").tofile(directory / "shard-00000.bin")
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with suppress(AprError, RefusedError):
        ShardDir(directory)
    if force:
        report = repair(directory, verify=True, force=True)
        if report.ok:
            assert ShardDir(directory).total_tokens == 4
        else:  # it agrees with the files, but its vocabulary is smaller than an id
            assert "vocabulary" in report.problems[0]
    else:
        with suppress(RefusedError):
            repair(directory, verify=True)


MANIFEST = json.dumps(
    {"schema": "pretokenize-bin-v1", "shard_count": 1, "total_tokens": 4, "eos_token_id": 3}
)


@st.composite
def damaged_manifests(draw):
    """Any bytes, or a good manifest with bytes replaced, put in or cut off."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=60))
    content = bytearray(MANIFEST.encode())
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(content)))
        content[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(content)


@given(content=damaged_manifests())
@example(content=b"[" * 100_000)
@example(content=b"\xef\xbb\xbf{}")
@example(content=b'{"total_tokens": ' + b"9" * 5000 + b"}")
@example(content=MANIFEST.encode().replace(b"4", b"4.0"))
def test_any_bytes_as_a_manifest_are_read_or_refused_in_one_line(content, tmp_path_factory, capsys):
    directory = tmp_path_factory.mktemp("shards")
    np.arange(4, dtype="<u4").tofile(directory / "shard-00000.bin")
    (directory / "manifest.json").write_bytes(content)
    refused = None
    try:
        shards = ShardDir(directory)
    except (AprError, RefusedError) as error:
        refused = error
        assert len(str(error).splitlines()) == 1
    else:
        assert shards.total_tokens == 4
        assert shards.read(0, 4).tolist() == [0, 1, 2, 3]
    code = main(["repair-manifest", str(directory), "--verify"])
    assert code in ({0, 4, 5} if refused else {0, 5})
    capsys.readouterr()
