"""Which checkpoints stay."""

import json

from tests.train.conftest import checkpoints, gate


def test_save_every_keeps_the_last_few_and_changes_no_epoch(options, train, tmp_path):
    train(options(run_dir=tmp_path / "alone"))
    train(options(save_every=2))
    assert checkpoints(tmp_path / "run") == checkpoints(tmp_path / "alone")
    names = {path.name for path in (tmp_path / "run" / "ckpt").glob("step-*.apr")}
    assert names == {"step-00000008.apr", "step-00000010.apr"}


def test_pruning_keeps_the_best_and_marks_the_others(options, train, tmp_path):
    result = train(options(num_steps=10, eval_every=2, keep=1))
    ckpt = tmp_path / "run" / "ckpt"
    assert {p.name for p in ckpt.glob("*.apr")} == {
        "epoch-004.apr",
        result.best_checkpoint.removeprefix("ckpt/"),
    }
    pruned = [json.loads(p.read_text()).get("pruned", False) for p in sorted(ckpt.glob("*.metadata.json"))]
    assert pruned == [not (ckpt / f"epoch-{n:03}.apr").exists() for n in range(5)]
    assert gate(result, "artefacts").passed
