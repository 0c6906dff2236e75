"""A model in several files: one mapping over all, and every rule of its index."""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.properties.test_container import TENSORS, bits

import apr
import apr.torch

DATA = Path(__file__).parents[1] / "fixtures" / "aprender-0.72"
TENSORS_OF = [
    {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "d": np.ones(4, np.int8)},
    {"a": np.arange(5.0), "c": np.array(7, np.int64)},
]
EXTRA = {"architecture": "qwen2"}


def name_of(place, count):
    return f"model-{place + 1:05}-of-{count:05}.apr"


def write(directory, parts, *, change=None, first=0, **metadata):
    """Files and their index; `change(index)` may lie in it."""
    directory.mkdir(exist_ok=True)
    weight_map = {}
    for place, tensors in enumerate(parts):
        name = name_of(place, len(parts))
        sharding = {"shard_count": len(parts), "shard_index": place + first, "total_size": 0, "pattern": None}
        apr.save(tensors, directory / name, EXTRA | {"place": place} | metadata | {"sharding": sharding})
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    if change:
        index = change(index) or index
    path = directory / "model.apr.index.json"
    path.write_text(index if isinstance(index, str) else json.dumps(index))
    return path


@pytest.fixture
def index(tmp_path):
    return write(tmp_path / "model", TENSORS_OF)


@given(TENSORS, st.integers(1, 4), st.randoms())
def test_several_files_are_the_same_mapping_as_one(tmp_path, tensors, count, random):
    directory = tmp_path / "model"
    for old in directory.glob("*"):
        old.unlink()
    parts = [{} for _ in range(count)]
    for name, array in tensors.items():
        random.choice(parts)[name] = array
    parts = [part for part in parts if part] or [{"only": np.ones(1)}]
    tensors = {name: array for part in parts for name, array in part.items()}
    write(directory, parts)
    apr.save(tensors, tmp_path / "one.apr")
    with apr.load(directory, verify="full") as several, apr.load(tmp_path / "one.apr") as one:
        assert list(several) == list(one)
        assert len(several) == len(one)
        for name, array in tensors.items():
            assert bits(several.numpy(name)) == bits(array)
            assert several.raw(name) == one.raw(name)
            assert several.info(name).nbytes == one.info(name).nbytes


def test_every_kind_of_access_works(index):
    file = apr.load(index)
    assert isinstance(file, apr.TensorFile)
    assert list(file) == ["a", "b", "c", "d"]
    assert dict(file).keys() == file.keys()
    assert file["b"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert file.slice("b")[1:, ::2].tolist() == [[3, 5]]
    state = file.to_torch(names=["c", "a"])
    assert list(state) == ["c", "a"]
    assert (state["c"].item(), state["a"].tolist()) == (7, [0, 1, 2, 3, 4])
    assert file.get("zz", 3) == 3
    assert "a" in file
    assert 7 not in file
    assert [] not in file
    with pytest.raises(KeyError, match="'zz'"):
        file["zz"]


def test_the_first_file_describes_the_model(index):
    file = apr.load(index)
    assert dict(file.metadata) == EXTRA | {"place": 0}
    assert file.header.tensor_count == 4
    assert file.nbytes == sum(path.stat().st_size for path in index.parent.glob("*.apr"))
    assert file.footer is None
    assert [Path(part.path).name for part in file.files] == [name_of(0, 2), name_of(1, 2)]
    assert Path(file.file_of("a").path).name == name_of(1, 2)
    assert repr(file) == f"<ShardedFile {str(index)!r}: 4 tensors in 2 files>"


def test_the_first_file_is_the_one_with_the_lowest_shard_index(tmp_path):
    index = write(tmp_path, TENSORS_OF, first=1)
    assert apr.load(index).metadata["place"] == 0
    for place in (0, 1):
        sharding = {"shard_count": 2, "shard_index": 1 - place}
        apr.stamp(tmp_path / name_of(place, 2), {"sharding": sharding}, tmp_path / name_of(place, 2))
    assert apr.load(index).metadata["place"] == 1


def test_tensors_outlive_the_files_and_a_closed_mapping_raises(index):
    with apr.load(index) as file:
        tensor = file["a"]
    assert tensor.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="closed"):
        file["a"]
    assert repr(file) == f"<ShardedFile {str(index)!r}: closed>"


def test_pickle_reopens_by_path(index, tmp_path, monkeypatch):
    monkeypatch.chdir(index.parent)
    opened = [apr.load(index.name), apr.load(".")]
    pickled = pickle.dumps(opened)
    monkeypatch.chdir(tmp_path)
    for file, again in zip(opened, pickle.loads(pickled), strict=True):
        assert again["a"].equal(file["a"])


def test_an_empty_head_is_tied_to_the_embedding_of_another_file(tmp_path):
    from tests.container.forged import Entry, forge

    sharding = [json.dumps({"sharding": {"shard_count": 2, "shard_index": i}}).encode() for i in (0, 1)]
    head = Entry(b"lm_head.weight", dims=(3, 2), size=0)
    flags = 1 << 4 | 1 << 10
    (tmp_path / "1.apr").write_bytes(forge(head, metadata=sharding[0], flags=flags))
    weight_map = {"lm_head.weight": "1.apr", "model.embed_tokens.weight": "2.apr"}
    (tmp_path / "m.apr.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for dims, fits in (((3, 2), True), ((2, 3), False)):
        embedding = Entry(b"model.embed_tokens.weight", dims=dims)
        (tmp_path / "2.apr").write_bytes(forge(embedding, metadata=sharding[1], flags=flags))
        file = apr.load(tmp_path)
        assert file.info("lm_head.weight").tied
        if fits:
            assert file["lm_head.weight"].shape == (3, 2)
            assert file.numpy("lm_head.weight").shape == file.slice("lm_head.weight")[:].shape == (3, 2)
            assert file.to_torch()["lm_head.weight"].shape == (3, 2)
        else:
            with pytest.raises(apr.FormatError, match="embed_tokens") as caught:
                file["lm_head.weight"]
            assert (caught.value.tensor, caught.value.path) == ("lm_head.weight", str(tmp_path / "1.apr"))


def test_a_directory_opens_its_index_or_its_only_file(tmp_path):
    def refused(says):
        for act in (apr.load, apr.verify, apr.inspect):
            with pytest.raises(IsADirectoryError, match=says):
                act(tmp_path)

    refused("index")
    apr.save({"x": np.ones(2)}, tmp_path / "one.apr")
    (tmp_path / ".hidden.apr").touch()
    (tmp_path / "config.json").touch()
    assert list(apr.load(tmp_path)) == ["x"]
    assert apr.verify(tmp_path).ok
    apr.save({"y": np.ones(2)}, tmp_path / "two.apr")
    refused("2")
    write(tmp_path, TENSORS_OF)
    assert list(apr.load(tmp_path)) == ["a", "b", "c", "d"]
    (tmp_path / "other.apr.index.json").touch()
    refused("2")


def names(**changes):
    return lambda index: index["weight_map"].update(changes)


REFUSED = {
    "no JSON": (lambda _: "{", "JSON"),
    "not UTF-8": (lambda _: "\udcff", "UnicodeDecodeError"),
    "too deep": (lambda _: "[" * 100_000, "RecursionError"),
    "a list": (lambda _: "[]", "weight_map"),
    "no weight_map": (lambda _: "{}", "weight_map"),
    "an empty weight_map": (lambda _: '{"weight_map": {}}', "weight_map"),
    "a number for a file": (names(a=3), "'a'"),
    "a tensor twice": (
        lambda index: json.dumps(index).replace('"weight_map": {', '"weight_map": {"a": "x.apr", '),
        "'a'",
    ),
    "a path": (names(a="sub/m.apr"), "'sub/m.apr'"),
    "an absolute path": (names(a="/m.apr"), "'/m.apr'"),
    "a way up": (names(a="../m.apr"), "'../m.apr'"),
    "dots": (names(a=".."), "'..'"),
    "an empty name": (names(a=""), "''"),
    "a NUL": (names(a="m\0.apr"), r"'m\\x00.apr'"),
    "a lone surrogate": (names(a="\ud800.apr"), "name"),
    "itself": (names(a="model.apr.index.json"), "model.apr.index.json"),
    "a tensor that is not there": (
        names(zz=name_of(0, 2)),
        "'zz'.*00001",
    ),
    "a tensor elsewhere": (names(a=name_of(0, 2)), "'a'.*00001"),
    "a tensor that it lacks": (
        lambda index: index["weight_map"].pop("a") and None,
        "'a'.*00002",
    ),
    "a file that it lacks": (
        lambda index: [index["weight_map"].pop(name) for name in "ac"] and None,
        "shard_count 2.*1 files",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_invalid_index_is_a_typed_error_of_one_line(case, tmp_path, run):
    change, says = REFUSED[case]
    path = tmp_path / "model.apr.index.json"
    if case == "not UTF-8":
        path.write_bytes(b"\xff")
    else:
        path = write(tmp_path, TENSORS_OF, change=change)
    with pytest.raises(apr.FormatError, match=f"^{path}: .*{says}") as caught:
        apr.load(path)
    assert caught.value.path == str(path)
    assert "\n" not in str(caught.value)
    report = apr.verify(path)
    assert (report.opened, report.ok, report.checks[-1].name) == (False, False, "index")
    for command in ("inspect", "tensors", "verify"):
        code, _, err = run(command, path)
        assert (code, len(err.splitlines())) == (4, 1)


SHARDING = {
    "nothing": (None, "sharding"),
    "text": ("one of two", "sharding"),
    "no count": ({"shard_index": 1}, "None"),
    "another count": ({"shard_count": 3, "shard_index": 1}, "shard_count 3.*2 files"),
    "a count that is true": ({"shard_count": True, "shard_index": 1}, "True"),
    "no place": ({"shard_count": 2}, "shard_index"),
    "a place before the first": ({"shard_count": 2, "shard_index": -1}, "shard_index"),
    "a place after the last": ({"shard_count": 2, "shard_index": 3}, "shard_index"),
    "one too far": ({"shard_count": 2, "shard_index": 2}, "shard_index"),
    "another's place": ({"shard_count": 2, "shard_index": 0}, "00001.*shard_index"),
}


@pytest.mark.parametrize("case", SHARDING)
def test_a_file_that_is_not_the_expected_shard_is_refused(case, index):
    sharding, says = SHARDING[case]
    part = index.parent / name_of(1, 2)
    apr.stamp(part, {"sharding": sharding}, part)
    with pytest.raises(apr.FormatError, match=says):
        apr.load(index)
    report = apr.verify(index)
    assert (report.opened, report.checks[-1].name) == (False, "index")


def test_a_missing_file_is_named(index, run):
    part = index.parent / name_of(1, 2)
    part.unlink()
    for act in (apr.load, apr.verify):
        with pytest.raises(FileNotFoundError) as caught:
            act(index)
        assert caught.value.filename == str(part)
    code, _, err = run("tensors", index)
    assert code == 3
    assert str(part) in err
    with pytest.raises(FileNotFoundError):
        apr.load(index.with_name("gone.apr.index.json"))


def hub_cache(source, root):
    """The files of a directory as the cache of the Hugging Face Hub holds them: links to blobs."""
    blobs, snapshot = root / "blobs", root / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        blob = hashlib.sha256(path.read_bytes()).hexdigest()
        (blobs / blob).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{blob}")
    return snapshot


@pytest.mark.parametrize("given", ["directory", "index", "link to the directory"])
def test_links_of_the_hub_cache_are_followed_by_every_command(given, index, tmp_path, run):
    snapshot = hub_cache(index.parent, tmp_path / "models--a--b")
    path = {
        "directory": snapshot,
        "index": snapshot / index.name,
        "link to the directory": tmp_path / "link",
    }[given]
    (tmp_path / "link").symlink_to(snapshot)
    with apr.load(path, verify="full") as file:
        assert {name: file.numpy(name).tolist() for name in file} == {
            name: tensor.tolist() for part in TENSORS_OF for name, tensor in part.items()
        }
    assert apr.verify(path).ok
    assert apr.diff(path, index).same
    assert list(apr.torch.load_file(path)) == ["a", "b", "c", "d"]
    for command in ("inspect", "tensors", "verify", "seal", "verify"):
        code, _, err = run(command, path)
        assert (code, err) == (0, ""), command
    for target in ("one.apr", "one.safetensors", "several/model.apr.index.json"):
        code, _, err = run("convert", path, tmp_path / target)
        assert (code, err) == (0, ""), target
    assert apr.diff(tmp_path / "one.apr", index).same
    # Links stay links, and blobs stay as they were.
    assert all((snapshot / entry.name).is_symlink() for entry in index.parent.iterdir())


def test_links_with_absolute_targets_are_followed_and_broken_ones_named(index, tmp_path, run):
    part = index.parent / name_of(1, 2)
    part.rename(tmp_path / "outside")
    part.symlink_to(tmp_path / "outside")
    assert list(apr.load(index)) == ["a", "b", "c", "d"]
    (tmp_path / "outside").unlink()
    for command in ("inspect", "tensors", "verify"):
        code, _, err = run(command, index)
        assert (code, len(err.splitlines())) == (3, 1)
        assert str(part) in err


def test_a_directory_or_another_format_in_place_of_a_shard_is_refused(index):
    part = index.parent / name_of(1, 2)
    part.write_bytes(b"PK\3\4" + bytes(99))
    with pytest.raises(apr.UnsupportedError, match="zip"):
        apr.load(index)
    part.unlink()
    part.mkdir()
    for act in (apr.load, apr.verify):
        with pytest.raises(IsADirectoryError):
            act(index)


def test_verify_is_one_report_for_all_files(index, run):
    report = apr.verify(index)
    assert report.ok
    assert report.path == str(index)
    assert [check.name for check in report.checks].count("footer") == 2
    assert index.name in report.checks[0].detail
    assert str(apr.load(index).verify()) == str(report)
    part = index.parent / name_of(1, 2)
    content = bytearray(part.read_bytes())
    content[-70] ^= 1
    part.write_bytes(content)
    report = apr.verify(index.parent)
    assert (report.opened, report.ok) == (True, False)
    (wrong,) = [check for check in report.checks if check.passed is False]
    assert wrong.name == "footer"
    assert part.name in wrong.detail
    assert run("verify", index)[0] == 5
    with pytest.raises(apr.ChecksumError, match=part.name):
        apr.load(index, verify="full")
    part.write_bytes(content[:100])
    report = apr.verify(index)
    assert (report.opened, report.checks[-1].passed) == (False, False)
    assert part.name in report.checks[-1].detail
    assert run("verify", index)[0] == 4


def test_commands_accept_an_index_and_a_directory(index, run):
    for path in (index, index.parent):
        report = json.loads(run("inspect", "--json", path)[1])
        assert [Path(name).name for name in report["files"]] == [name_of(0, 2), name_of(1, 2)]
        assert (report["kind"], report["tensor_count"], report["checksum_valid"]) == ("model", 4, True)
        assert report["param_count"] == 16
        assert (report["header_checksum"], report["footer_checksum"]) == (None, None)
        rows = json.loads(run("tensors", "--json", "--stats", path)[1])["tensors"]
        assert [(row["name"], row["file"]) for row in rows] == [
            ("a", name_of(1, 2)),
            ("b", name_of(0, 2)),
            ("c", name_of(1, 2)),
            ("d", name_of(0, 2)),
        ]
        assert name_of(1, 2) in run("tensors", path)[1]
        assert run("diff", path, index)[0] == 0


def test_the_safetensors_functions_accept_an_index(index):
    import apr.torch

    assert list(apr.torch.load_file(index)) == ["a", "b", "c", "d"]
    with apr.safe_open(index, "np") as file:
        assert file.get_slice("b")[0].tolist() == [0, 1, 2]


def test_one_shard_opens_alone():
    assert list(apr.load(DATA / "sharded.apr")) == ["w"]
    assert apr.inspect(DATA / "sharded.apr")["kind"] == "shard"
    assert apr.inspect(DATA / "sharded.apr")["files"] is None


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_any_bytes_as_an_index_are_a_format_error(tmp_path, content):
    (tmp_path / "m.apr.index.json").write_bytes(content)
    with pytest.raises(apr.FormatError):
        apr.load(tmp_path)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["1.apr", "2.apr", "a", "b"]),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abxy"), inner, max_size=3)
        ),
        max_leaves=6,
    )
)
def test_any_weight_map_opens_or_is_refused(tmp_path, weight_map):
    for i, name in enumerate("ab"):
        if not (tmp_path / f"{i + 1}.apr").exists():
            sharding = {"shard_count": 2, "shard_index": i}
            apr.save({name: np.ones(2)}, tmp_path / f"{i + 1}.apr", {"sharding": sharding})
    path = tmp_path / "m.apr.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
    try:
        assert list(apr.load(path)) == ["a", "b"]
        assert weight_map == {"a": "1.apr", "b": "2.apr"}
    except (apr.AprError, FileNotFoundError) as error:
        assert "\n" not in str(error)
