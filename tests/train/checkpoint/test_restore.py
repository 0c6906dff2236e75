"""A run resumes only with the data that it was started with."""

import shutil

import pytest
from tests.train.conftest import BASE, checkpoints


def test_shards_that_changed_are_refused(options, train, train_until, make_shards, tmp_path):

    from apr.errors import RefusedError

    train_until(options(), 3)
    shutil.rmtree(tmp_path / "shards")
    make_shards(seed=9)
    before = (tmp_path / "run" / "result.json").read_bytes()
    with pytest.raises(RefusedError, match="--dataset"):
        train(options(resume=True))
    assert (tmp_path / "run" / "result.json").read_bytes() == before


def test_what_moved_is_used_if_it_is_the_same(options, train, train_until, make_shards, tmp_path):
    """Data and base file are compared by content; config.yaml then has their new paths."""
    import yaml

    base, data, val = tmp_path / "base.apr", make_shards(), make_shards("val", tokens=700, seed=5)
    base.write_bytes(BASE.read_bytes())
    config = options(init=base, dataset=data, val_dataset=val)
    train(options(init=base, dataset=data, val_dataset=val, run_dir=tmp_path / "alone"))
    train_until(config, 7)
    (tmp_path / "new").mkdir()
    moved = {
        "init": base.rename(tmp_path / "new" / "other.apr"),
        "dataset": data.rename(tmp_path / "new" / "shards"),
        "val_dataset": val.rename(tmp_path / "new" / "val"),
    }
    assert train(options(**moved, resume=True)).status == "BUDGET_SPENT"
    assert checkpoints(tmp_path / "run") == checkpoints(tmp_path / "alone")
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert {name: written[name] for name in moved} == {name: str(path) for name, path in moved.items()}


def test_held_out_text_that_changed_is_refused(options, train, train_until, make_shards):

    from apr.errors import RefusedError

    val = make_shards("val", tokens=700, seed=5)
    train_until(options(val_dataset=val), 3)
    shutil.rmtree(val)
    make_shards("val", tokens=700, seed=6)
    with pytest.raises(RefusedError, match="--val-dataset"):
        train(options(val_dataset=val, resume=True))
