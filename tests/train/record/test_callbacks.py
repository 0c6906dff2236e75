"""Programs and scripts get the same records as the files."""

import io
import json

from apr.train import Callbacks


def test_callbacks_get_what_the_files_have(short):
    from apr.train import CheckpointRecord, EvaluationRecord, StepRecord, pretrain

    config, seen = short(), []
    callbacks = Callbacks(on_step=seen.append, on_evaluation=seen.append, on_checkpoint=seen.append)
    pretrain(config, callbacks=callbacks, out=io.StringIO())
    lines = [json.loads(line) for line in (config.run_dir / "train.jsonl").read_text().splitlines()]
    steps, evaluations, checkpoints = (
        [record for record in seen if isinstance(record, kind)]
        for kind in (StepRecord, EvaluationRecord, CheckpointRecord)
    )
    assert [r.train_loss for r in steps] == [r["train_loss"] for r in lines if "train_loss" in r]
    assert [(r.step, r.val_loss) for r in evaluations] == [
        (r["step"], r["val_loss"]) for r in lines if "val_loss" in r
    ]
    assert [(r.step, r.epoch, r.path.name) for r in checkpoints] == [
        (2, 0, "epoch-000.apr"),
        (3, 1, "epoch-001.apr"),
    ]
    assert all(r.path.is_file() for r in checkpoints)


def test_json_prints_a_line_for_each_event(short, flags, capsys):
    from apr.cli import main

    assert main(["pretrain", *flags(short()), "--json"]) == 0
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    kinds = [e["event"] for e in events]
    assert [kind for kind in kinds if kind != "checkpoint"] == [
        "evaluation", "step", "step", "evaluation", "step", "evaluation", "result",
    ]  # fmt: skip
    assert kinds.count("checkpoint") == 2  # each as soon as it is verified: training went on meanwhile
    assert kinds.index("checkpoint") > 3
    others = [e for e in events if e["event"] != "checkpoint"]
    assert [e["step"] for e in others[:-1]] == [0, 0, 1, 2, 2, 3]
    saved = [e for e in events if e["event"] == "checkpoint"]
    assert [e["step"] for e in saved] == [2, 3]
    assert saved[0]["path"] == "ckpt/epoch-000.apr"
    assert events[-1]["status"] == "BUDGET_SPENT"
    assert "BUDGET_SPENT: " in err
