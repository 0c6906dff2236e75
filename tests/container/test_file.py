"""An open file: a mapping whose tensors lie in the file's pages and own nothing else."""

import copy
import gc
import pickle

import numpy as np
import pytest

import apr


@pytest.fixture
def path(tmp_path):
    import torch

    tensors = {
        "model.norm.weight": torch.arange(6.0).reshape(2, 3),
        "model.embed.weight": torch.ones(64, 8, dtype=torch.bfloat16),
        "scalar": torch.tensor(3, dtype=torch.int64),
    }
    apr.save(tensors, tmp_path / "m.apr", {"name": "x", "deep": {"list": [1, None]}})
    return tmp_path / "m.apr"


def test_a_file_is_a_mapping_in_index_order(path):
    file = apr.load(path)
    assert list(file) == list(file.keys()) == ["model.embed.weight", "model.norm.weight", "scalar"]
    assert len(file) == 3
    assert "scalar" in file
    assert "other" not in file
    assert file.get("other") is None
    assert {name: tuple(t.shape) for name, t in file.items()} == {n: file.info(n).shape for n in file}
    assert file["scalar"].item() == 3


def test_a_missing_tensor_suggests_similar_names(path):
    file = apr.load(path)
    for look in (file.__getitem__, file.numpy, file.raw, file.info):
        with pytest.raises(KeyError, match=r"model\.norm\.weight"):
            look("model.norm.wieght")


def test_a_missing_tensor_is_compared_with_1000_neighbors_at_most(tmp_path, monkeypatch):
    import difflib

    one = np.zeros(1, np.int8)
    apr.save(
        {f"layers.{layer:02d}.{n:03d}.weight": one for layer in range(20) for n in range(100)}, tmp_path / "m"
    )
    file, compared = apr.load(tmp_path / "m"), []

    def count(name, names, **options):
        compared.append(len(names))
        return close_matches(name, names, **options)

    close_matches = difflib.get_close_matches
    monkeypatch.setattr(difflib, "get_close_matches", count)
    for name, close in [("layers.00.000.weigth", "00.000"), ("layers.19.099.weights", "19.099"), ("z", None)]:
        with pytest.raises(KeyError, match=f"layers.{close}.weight" if close else "'z'"):
            file[name]
    assert compared == [1000] * 3
    with pytest.raises(KeyError):
        file["n" * 100_000]
    assert len(compared) == 3


def test_tensors_use_the_mapped_pages_without_a_copy(path):
    file = apr.load(path)
    assert file["model.norm.weight"].data_ptr() == file["model.norm.weight"].data_ptr()
    assert file["model.norm.weight"].data_ptr() % 64 == 0
    assert np.shares_memory(file.numpy("model.norm.weight"), file["model.norm.weight"].numpy())
    assert file["model.norm.weight"].data_ptr() - file["model.embed.weight"].data_ptr() == (
        file.info("model.norm.weight").offset - file.info("model.embed.weight").offset
    )


def test_a_tensor_has_a_storage_of_exactly_its_bytes(path, tmp_path):
    import torch

    file = apr.load(path)
    for name, tensor in file.items():
        assert tensor.untyped_storage().nbytes() == file.info(name).nbytes
        assert tensor.storage_offset() == 0
        assert tensor.is_contiguous()
    storages = {tensor.untyped_storage().data_ptr() for tensor in file.values()}
    assert len(storages) == len(file)
    torch.save(file["model.norm.weight"], tmp_path / "one.pt")
    assert (tmp_path / "one.pt").stat().st_size < 2000


def test_writing_to_a_tensor_never_changes_the_file(path):
    before = path.read_bytes()
    file = apr.load(path)
    file["model.norm.weight"].fill_(7)
    file.numpy("scalar")[...] = 9
    assert file["model.norm.weight"].eq(7).all()
    del file
    gc.collect()
    assert path.read_bytes() == before
    assert apr.load(path)["model.norm.weight"].flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_tensors_outlive_the_file(path):
    with apr.load(path) as file:
        tensor, array, raw = file["model.norm.weight"], file.numpy("scalar"), file.raw("scalar")
    path.unlink()
    del file
    gc.collect()
    assert tensor.sum() == 15
    assert array == 3
    assert bytes(raw) == (3).to_bytes(8, "little")


def test_a_closed_file_raises_an_error(path):
    file = apr.load(path)
    file.close()
    file.close()
    assert "closed" in repr(file)
    with pytest.raises(ValueError, match="closed"):
        file["scalar"]


def test_raw_returns_the_stored_bytes_read_only(path):
    raw = apr.load(path).raw("model.norm.weight")
    assert raw.readonly
    assert bytes(raw) == np.arange(6, dtype="<f4").tobytes()


def test_info_and_header_are_frozen_and_locate_the_bytes(path):
    file = apr.load(path)
    info = file.info("model.norm.weight")
    assert (info.dtype, info.shape, info.nbytes) == ("f32", (2, 3), 24)
    assert path.read_bytes()[info.offset : info.offset + 24] == bytes(file.raw(info.name))
    with pytest.raises(AttributeError):
        info.nbytes = 3
    with pytest.raises(AttributeError):
        file.header.tensor_count = 3
    assert (file.header.magic, file.header.version, file.header.tensor_count) == (b"APR\0", (2, 0), 3)
    assert file.header.flags.name == "LAYOUT_ROW_MAJOR"


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.__setitem__("a", 1),
        lambda m: m.__delitem__("name"),
        lambda m: m.update(a=1),
        lambda m: m.setdefault("a", 1),
        lambda m: m.pop("name"),
        lambda m: m.popitem(),
        lambda m: m.clear(),
        lambda m: m.__ior__({"a": 1}),
    ],
)
def test_metadata_cannot_be_changed(change, path):
    metadata = apr.load(path).metadata
    with pytest.raises(TypeError, match="read-only"):
        change(metadata)
    assert metadata == {"name": "x", "deep": {"list": [1, None]}}
    assert list(metadata) == ["name", "deep"]


def test_pickles_and_copies_are_equal(path):
    file = apr.load(path)
    for copied in (
        pickle.loads(pickle.dumps(file.metadata)),
        copy.deepcopy(file.metadata),
        copy.copy(file.metadata),
    ):
        assert copied == file.metadata
        with pytest.raises(TypeError):
            copied["a"] = 1
    again = pickle.loads(pickle.dumps(file))
    assert again["model.norm.weight"].equal(file["model.norm.weight"])
    assert pickle.loads(pickle.dumps(file.info("scalar"))) == file.info("scalar")
    assert pickle.loads(pickle.dumps(file.header)) == file.header
