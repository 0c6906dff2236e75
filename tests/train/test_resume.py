"""Going on from a checkpoint: the same bytes as a run that was left alone, and what is refused."""

import json
import os

import pytest
from tests.train.conftest import BASE, DATA, checkpoints


def test_resume_needs_no_other_flag(options, train_until, tmp_path, capsys):
    from apr.cli import main

    train_until(options(), 3)
    assert main(["pretrain", "--run-dir", str(tmp_path / "run"), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps_completed"] == 12


@pytest.mark.parametrize(
    "change", [{"seq_length": 16}, {"lr": 1e-4}, {"seed": 1}, {"num_steps": 20}, {"num_steps": 11}]
)
def test_a_resumed_run_keeps_its_options(options, train, change):
    from apr.errors import RefusedError

    train(options())
    with pytest.raises(RefusedError, match=next(iter(change)).replace("_", "-")):
        train(options(resume=True, **change))


def test_extend_goes_further(options, train):
    train(options())
    assert train(options(resume=True, extend=True, num_steps=15)).steps_completed == 15


def test_a_resumed_run_keeps_its_precision_and_tells_its_own_speed(options, train, monkeypatch):
    """Also on a device that would choose another precision; what an earlier device did says nothing of it."""
    import yaml

    from apr.train.start import needs

    config = options(num_steps=6)
    train(config)
    assert yaml.safe_load((config.run_dir / "config.yaml").read_text())["precision"] == "fp32"
    metrics = config.run_dir / "train.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert {line["device"] for line in lines if "train_loss" in line} == {"cpu"}
    for line in lines:
        if "train_loss" in line:
            line.update(tokens_per_sec=1e12, mfu=0.5)
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(needs, "default_precision", lambda _: "bf16")
    resumed = train(options(num_steps=9, resume=True, extend=True))
    assert yaml.safe_load((config.run_dir / "config.yaml").read_text())["precision"] == "fp32"
    assert 0 < resumed.tokens_per_second < 1e11
    assert resumed.mfu is None


@pytest.mark.parametrize("num_steps", [14, 15])
def test_extend_goes_on_from_a_partial_epoch(options, train, tmp_path, num_steps):
    train(options(steps_per_epoch=5))
    further = train(options(steps_per_epoch=5, resume=True, extend=True, num_steps=num_steps))
    assert (further.status, further.steps_completed, further.epochs_completed) == (
        "BUDGET_SPENT",
        num_steps,
        4,
    )
    assert further.last_checkpoint == "ckpt/epoch-003.apr"
    assert further.final_val_loss == further.val_loss_history[-1]
    records = list(map(json.loads, (tmp_path / "run" / "train.jsonl").open()))
    assert [r["step"] for r in records if "val_loss" in r] == [0, 5, 10, 12, num_steps]
    assert all(gate.passed for gate in further.gates if gate.name in {"metrics", "artifacts"})


def test_wall_seconds_are_one_clock_over_all_parts(options, train, monkeypatch, tmp_path):
    """From the call on, what was before the first record too, and never back."""
    from types import SimpleNamespace

    from apr.train import run
    from apr.train.record import recording

    now = [0.0]

    def ticking():
        now[0] += 1
        return now[0]

    for module in (recording, run):
        monkeypatch.setattr(
            module, "time", SimpleNamespace(monotonic=ticking, perf_counter=module.time.perf_counter)
        )
    prepare = run.prepare

    def slowly(config):
        now[0] += 100
        return prepare(config)

    monkeypatch.setattr(run, "prepare", slowly)
    ends = [train(options(resume=resume, num_steps=6)).wall_seconds for resume in (False, True, True)]
    walls = [json.loads(line)["wall_seconds"] for line in (tmp_path / "run" / "train.jsonl").open()]
    assert 100 < walls[0] < walls[-1] < ends[0]
    assert [b - a > 100 for a, b in zip([0, *ends], ends, strict=False)] == [True] * 3
    train(options(resume=True, extend=True, num_steps=7))
    walls = [json.loads(line)["wall_seconds"] for line in (tmp_path / "run" / "train.jsonl").open()]
    assert walls == sorted(walls)
    assert walls[-1] > ends[-1]


def test_what_ended_a_run_ends_it_again_when_it_is_resumed(options, train, monkeypatch, tmp_path):
    from apr.train import gates

    with monkeypatch.context() as patched:
        patched.setattr(gates, "first_cap", lambda *_: 0.5)
        ends = [train(options(resume=resume)) for resume in (False, True)]
    assert [(e.status, e.exit_code, e.steps_completed) for e in ends] == [("DIVERGENCE", 5, 6)] * 2

    run = {"run_dir": tmp_path / "patient", "lr": 1e-30, "steps_per_epoch": 2, "patience": 2, "min_epochs": 1}
    ends = [train(options(**run, resume=resume)) for resume in (False, True)]
    assert [(e.status, e.steps_completed) for e in ends] == [("EARLY_STOP", 6)] * 2
    assert train(options(**run | {"patience": 9}, resume=True)).steps_completed == 12


def test_a_target_that_was_met_is_gone_on_from_when_asked(options, train):
    met = {"target_val_loss": 100.0}
    ends = [train(options(**met, resume=resume)) for resume in (False, True)]
    assert [(e.status, e.steps_completed) for e in ends] == [("TARGET_MET", 6)] * 2
    on = train(options(**met, resume=True, stop_at_target=False, extend=True, num_steps=14))
    assert (on.status, on.steps_completed) == ("TARGET_MET", 14)


def test_shards_that_changed_are_refused(options, train, train_until, make_shards, tmp_path):
    import shutil

    from apr.errors import RefusedError

    train_until(options(), 3)
    shutil.rmtree(tmp_path / "shards")
    make_shards(seed=9)
    before = (tmp_path / "run" / "result.json").read_bytes()
    with pytest.raises(RefusedError, match="of --dataset are no longer those"):
        train(options(resume=True))
    assert (tmp_path / "run" / "result.json").read_bytes() == before


def test_what_moved_is_taken_where_it_is_the_same(options, train, train_until, make_shards, tmp_path):
    """Data, base file and sizes by what they hold; config.yaml has where they lie now."""
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


def test_one_path_written_in_two_ways_is_one(options, train, train_until, tmp_path):
    """Of a run without a checkpoint too, which knows nothing but paths."""
    from apr.errors import RefusedError

    config = options()
    train_until(config, 0, field="val_loss")
    with pytest.raises(RefusedError, match="--dataset"):
        train(options(dataset=tmp_path / "elsewhere", resume=True))
    again = options(dataset=tmp_path / "run" / ".." / "shards", resume=True)
    assert train(again).status == "BUDGET_SPENT"


def test_config_yaml_names_the_sizes_absolutely_and_others_are_refused(options, train, monkeypatch, tmp_path):
    import yaml

    from apr.errors import RefusedError

    sizes = (
        "{{architecture: llama, hidden_size: 32, num_layers: {}, num_heads: 4, num_kv_heads: 2, "
        "intermediate_size: 64, max_position_embeddings: 64, rope_theta: 10000.0, "
        "rms_norm_eps: 1.0e-6, tie_word_embeddings: false}}"
    )
    (tmp_path / "sizes.yaml").write_text(sizes.format(2))
    (tmp_path / "others.yaml").write_text(sizes.format(3))
    monkeypatch.chdir(tmp_path)
    scratch = {"init": None, "mode": "from-scratch", "num_steps": 3, "steps_per_epoch": 3}
    train(options(**scratch, arch="sizes.yaml"))
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["arch"] == str(tmp_path / "sizes.yaml")
    for arch in ("sizes.yaml", str(tmp_path / "sizes.yaml")):
        assert train(options(**scratch, arch=arch, resume=True)).steps_completed == 3
    with pytest.raises(RefusedError, match=r"--arch others\.yaml is not what the run was started with"):
        train(options(**scratch, arch="others.yaml", resume=True))


def test_a_base_file_that_changed_is_refused(options, train, tmp_path):
    import apr
    from apr.errors import RefusedError

    base = tmp_path / "base.apr"
    base.write_bytes(BASE.read_bytes())
    train(options(init=base))
    with apr.load(base) as file:
        tensors = {name: file[name].clone() for name in file}
        metadata = dict(file.metadata)
    tensors["model.norm.weight"] *= 1.5
    apr.save(tensors, base, metadata=metadata)
    with pytest.raises(RefusedError, match=r"started from base\.apr \(.*--init is now base\.apr \("):
        train(options(init=base, resume=True))


@pytest.mark.parametrize("mode", ["finetune", "from-scratch"])
def test_a_checkpoint_and_the_data_are_all_that_resuming_needs(options, train, train_until, tmp_path, mode):
    """The file, the sizes and the tokenizer that the run was started with are gone."""
    import shutil

    from apr.train import plan

    base, sizes, tokenizer = (tmp_path / name for name in ("base.apr", "sizes.yaml", "tokenizer"))
    base.write_bytes(BASE.read_bytes())
    sizes.write_text(
        "{architecture: llama, hidden_size: 32, num_layers: 2, num_heads: 4, num_kv_heads: 2, "
        "intermediate_size: 64, max_position_embeddings: 64, rope_theta: 10000.0, "
        "rms_norm_eps: 1.0e-6, tie_word_embeddings: false}"
    )
    shutil.copytree(DATA / "hf_qwen2_tied", tokenizer)
    start = {"init": base} if mode == "finetune" else {"init": None, "mode": mode, "arch": str(sizes)}
    train(options(**start, tokenizer=tokenizer, run_dir=tmp_path / "alone"))
    assert train_until(options(**start, tokenizer=tokenizer), 7).steps_completed == 8
    base.unlink()
    sizes.unlink()
    shutil.rmtree(tokenizer)
    again = options(**start, tokenizer=tokenizer, resume=True)
    assert plan(again).prepared.parameters > 0
    assert train(again).status == "BUDGET_SPENT"
    assert checkpoints(tmp_path / "run") == checkpoints(tmp_path / "alone")


def test_a_run_without_a_checkpoint_needs_its_base_file(options, train, train_until, tmp_path):
    base = tmp_path / "base.apr"
    base.write_bytes(BASE.read_bytes())
    assert train_until(options(init=base), 0, field="val_loss").last_checkpoint is None
    base.unlink()
    with pytest.raises(FileNotFoundError, match=r"base\.apr"):
        train(options(init=base, resume=True))


def flipped(content):
    return (
        content[: len(content) // 2]
        + bytes([content[len(content) // 2] ^ 1])
        + content[len(content) // 2 + 1 :]
    )


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:1000], lambda _: b""],
                         ids=["bit", "torn", "empty"])  # fmt: skip
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(options, train, tmp_path, damage):
    run = tmp_path / "run"
    first = train(options())
    expected = checkpoints(run)
    path = run / first.last_checkpoint
    path.write_bytes(damage(path.read_bytes()))
    resumed = train(options(resume=True))
    assert (resumed.status, resumed.resumed_from) == ("BUDGET_SPENT", "ckpt/epoch-000.apr")
    assert checkpoints(run) == expected
    log = (run / "run.log").read_text()
    assert log.count("damaged, set aside as epoch-001.apr.damaged") == 1
    assert (run / "ckpt" / "epoch-001.apr.damaged").exists()
    steps = [r["step"] for r in map(json.loads, (run / "train.jsonl").open()) if "train_loss" in r]
    assert steps == list(range(12))


def test_a_damaged_best_checkpoint_is_named_and_another_is_the_best(options, train, monkeypatch, tmp_path):
    from dataclasses import replace

    from apr.train import loop

    evaluate, losses = loop.evaluate, iter([5.0, 4.0, 4.1, 4.2])
    monkeypatch.setattr(loop, "evaluate", lambda *a, **k: replace(evaluate(*a, **k), val_loss=next(losses)))
    assert train(options()).best_checkpoint == "ckpt/epoch-000.apr"
    ckpt = tmp_path / "run" / "ckpt"
    (ckpt / "epoch-000.apr").write_bytes(flipped((ckpt / "epoch-000.apr").read_bytes()))
    resumed = train(options(resume=True, extend=True, num_steps=18, keep=1))
    assert (resumed.resumed_from, resumed.best_checkpoint) == ("ckpt/epoch-001.apr", "ckpt/epoch-001.apr")
    assert {path.name for path in ckpt.glob("*.apr*")} == {
        "epoch-000.apr.damaged",
        "epoch-001.apr",
        "epoch-002.apr",
    }
    assert json.loads((ckpt / "epoch-000.metadata.json").read_text())["damaged"] is True
    assert (resumed.status, resumed.exit_code) == ("FAILED", 5)
    assert "epoch-000.apr damaged" in resumed.detail
    artifacts = next(gate for gate in resumed.gates if gate.name == "artifacts")
    assert (artifacts.passed, artifacts.value) == (False, "epoch-000.apr damaged")
    assert "best model: " in (log := (tmp_path / "run" / "run.log").read_text())
    assert "epoch-001.apr, held-out loss 4.1000" in log


def test_what_does_not_read_back_is_no_checkpoint_and_nothing_is_pruned_for_it(
    options, train, monkeypatch, tmp_path
):
    """A disk that takes a bit for another."""
    from apr.train.checkpoint import snapshot

    write = snapshot.write

    def writing(path, *arguments):
        write(path, *arguments)
        if path.name == "epoch-001.apr":
            path.write_bytes(flipped(path.read_bytes()))

    monkeypatch.setattr(snapshot, "write", writing)
    result = train(options(keep=1))
    assert (result.status, result.last_checkpoint) == ("FAILED", "ckpt/epoch-000.apr")
    assert "epoch-001.apr" in result.detail
    assert (tmp_path / "run" / "ckpt" / "epoch-000.apr").exists()
    assert not (tmp_path / "run" / "ckpt" / "epoch-001.metadata.json").exists()


def test_held_out_text_that_changed_is_refused(options, train, train_until, make_shards):
    import shutil

    from apr.errors import RefusedError

    val = make_shards("val", tokens=700, seed=5)
    train_until(options(val_dataset=val), 3)
    shutil.rmtree(val)
    make_shards("val", tokens=700, seed=6)
    with pytest.raises(RefusedError, match=r"of --val-dataset are no longer those"):
        train(options(val_dataset=val, resume=True))


def test_a_resumed_process_compares_both_paths_anew(options, train, train_until, monkeypatch):
    from apr.train import loop

    train_until(options(), 3)
    losses = loop.token_losses
    monkeypatch.setattr(loop, "token_losses", lambda model, ids: losses(model, ids) * 1.01)
    resumed = train(options(resume=True))
    assert (resumed.status, resumed.exit_code, resumed.steps_completed) == ("REFUSED", 5, 4)


@pytest.mark.parametrize("line", [b"\xff\xfe", b"{}", b"[1]", b"garbage"])
def test_records_that_are_none_are_named_and_nothing_is_moved(options, train, tmp_path, line):
    from apr.errors import RefusedError

    train(options())
    run = tmp_path / "run"
    metrics = (run / "train.jsonl").read_bytes()
    (run / "train.jsonl").write_bytes(line + b"\n" + metrics)
    before = {path.name for path in run.iterdir()}
    with pytest.raises(RefusedError, match=r"train\.jsonl: line 1 is no record"):
        train(options(resume=True))
    assert {path.name for path in run.iterdir()} == before
    (run / "train.jsonl").write_bytes(metrics + line)  # cut off
    assert train(options(resume=True)).status == "BUDGET_SPENT"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "dataset, run_dir"),
        ("dataset: [a, b]\nrun_dir: r", r"config\.yaml: --dataset must be a path"),
        ("dataset: d\nrun_dir: r\ninit: 5", r"config\.yaml: --init must be a path"),
    ],
)
def test_a_config_yaml_that_holds_no_run_is_one_line(options, train, tmp_path, capsys, text, words):
    import re

    from apr.cli import main
    from apr.errors import UsageError

    run = tmp_path / "run"
    (run / "ckpt").mkdir(parents=True)
    (run / "config.yaml").write_text(text)
    with pytest.raises(UsageError, match=words):
        train(options(resume=True))
    if text:
        assert main(["pretrain", "--config", str(run / "config.yaml")]) == 2
        assert re.search(words, capsys.readouterr().err.splitlines()[0])


def test_a_plan_of_a_resumed_run_counts_what_is_left(options, train):
    from apr.train import plan

    train(options())
    more = {"num_steps": 18, "extend": True, "resume": True}
    planned = plan(options(**more))
    facts = planned.to_dict()
    assert facts["steps_done"] == 12
    assert planned.seconds == pytest.approx(
        6 * planned.seconds_per_step + planned.seconds_per_evaluation + planned.seconds_per_checkpoint
    )
    assert "the 6 steps left: about" in str(planned)


def test_where_no_checkpoint_verifies_all_are_named(options, train, tmp_path):
    from apr.errors import RefusedError

    train(options())
    for path in (tmp_path / "run" / "ckpt").glob("*.apr"):
        path.write_bytes(flipped(path.read_bytes()))
    metrics = (tmp_path / "run" / "train.jsonl").read_bytes()
    with pytest.raises(RefusedError, match=r"epoch-001\.apr.*epoch-000\.apr"):
        train(options(resume=True))
    assert (tmp_path / "run" / "train.jsonl").read_bytes() == metrics


def test_save_every_keeps_the_last_few_and_changes_no_epoch(options, train, tmp_path):
    train(options(run_dir=tmp_path / "alone"))
    train(options(save_every=2))
    assert checkpoints(tmp_path / "run") == checkpoints(tmp_path / "alone")
    names = {path.name for path in (tmp_path / "run" / "ckpt").glob("step-*.apr")}
    assert names == {"step-00000008.apr", "step-00000010.apr"}


def test_another_cut_of_the_same_windows_goes_on(options, train, train_until):
    from apr.errors import RefusedError

    stopped = train_until(options(batch_size=4), 3)
    with pytest.raises(RefusedError, match=r"--batch-size 4 --grad-accum 1.* not 6"):
        train(options(resume=True, batch_size=2, grad_accum=3))
    resumed = train(options(resume=True, batch_size=2, grad_accum=2))
    assert (resumed.status, resumed.steps_completed) == ("BUDGET_SPENT", 12)
    agreed = next(gate for gate in resumed.gates if gate.name == "train_eval_agree")
    before = next(gate for gate in stopped.gates if gate.name == "train_eval_agree")
    assert agreed.value >= before.value


def test_the_weights_alone_in_bfloat16(options, train, tmp_path):
    import torch

    import apr
    from apr.train.evaluate_file import evaluate_file

    result = train(options(save_dtype="bf16"))
    assert result.export == "final.apr"
    log = (tmp_path / "run" / "run.log").read_text()
    assert f"weights alone, in bfloat16: {tmp_path / 'run' / 'final.apr'}" in log
    weights = apr.load(tmp_path / "run" / "final.apr")
    last = apr.load(tmp_path / "run" / result.last_checkpoint)
    names = {name for name in last if not name.startswith("__training__")}
    assert set(weights) == names
    assert all(torch.equal(weights[name], last[name].bfloat16()) for name in names)
    loss = evaluate_file(tmp_path / "run" / "final.apr", tmp_path / "shards", device="cpu")[0].val_loss
    assert loss == pytest.approx(result.final_val_loss, rel=1e-2)
    first = train(options(init=tmp_path / "run" / "final.apr", run_dir=tmp_path / "next"))
    assert first.initial_val_loss == pytest.approx(loss, abs=1e-6)


def test_determinism_is_asked_for_and_given_back(options, train, monkeypatch):
    import torch

    from apr.train import loop

    seen = []
    rate = loop.learning_rate

    def looked(*args, **kwargs):
        seen.append((torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
        return rate(*args, **kwargs)

    monkeypatch.setattr(loop, "learning_rate", looked)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    fills = torch.utils.deterministic.fill_uninitialized_memory
    train(options(num_steps=2, steps_per_epoch=2, deterministic=True))
    assert seen == [(True, ":4096:8")] * 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert torch.utils.deterministic.fill_uninitialized_memory == fills


def test_memory_that_runs_out_is_one_line_with_flags_that_help(options, train, monkeypatch):
    import torch

    from apr.errors import RefusedError
    from apr.train import step
    from apr.train.start.preflight import Prepared

    def too_much(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")

    with monkeypatch.context() as patched:
        patched.setattr(step, "add_gradients", too_much)
        result = train(options(batch_size=6, grad_accum=2))
    assert (result.status, result.exit_code) == ("FAILED", 1)
    assert result.detail == "out of memory: take --batch-size 3 --grad-accum 4, which keeps 12 windows a step"
    monkeypatch.setattr(Prepared, "build_model", too_much)
    with pytest.raises(RefusedError, match="out of memory while the weights are loaded"):
        train(options(force=True))


def test_pruning_keeps_the_best_and_says_what_went(options, train, tmp_path):
    result = train(options(num_steps=10, steps_per_epoch=2, keep=1))
    ckpt = tmp_path / "run" / "ckpt"
    assert {p.name for p in ckpt.glob("*.apr")} == {
        "epoch-004.apr",
        result.best_checkpoint.removeprefix("ckpt/"),
    }
    pruned = [json.loads(p.read_text()).get("pruned", False) for p in sorted(ckpt.glob("*.metadata.json"))]
    assert pruned == [not (ckpt / f"epoch-{n:03}.apr").exists() for n in range(5)]
    assert next(g for g in result.gates if g.name == "artifacts").passed


def test_a_base_file_is_never_a_checkpoint():
    from apr.container.load import load
    from apr.errors import RefusedError
    from apr.train.checkpoint.state import state_of

    with pytest.raises(RefusedError, match="no training state"):
        state_of(load(BASE))
