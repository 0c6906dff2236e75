"""A run from an .apr file to an .apr file: what it writes, and what it leaves alone."""

import asyncio
import io
import json
import math
import os
import shutil
import signal
import threading

import pytest
from tests.train.conftest import BASE, SEQ, records

from apr.train import Callbacks

STEP_FIELDS = {"step", "train_loss", "grad_norm", "lr", "tokens_per_sec", "gpu_util_pct"}


def test_a_run_learns_and_leaves_what_it_promises(options, train):
    import apr

    config = options()
    result = train(config)
    run = config.run_dir

    assert (result.status, result.exit_code) == ("BUDGET_SPENT", 0)
    assert result.final_val_loss < result.initial_val_loss - 0.3
    assert result.val_loss_history[-1] == result.final_val_loss
    assert (result.steps_completed, result.epochs_completed) == (12, 2)
    assert result.tokens_seen == 12 * 4 * SEQ
    assert all(gate.passed for gate in result.gates if gate.name != "target")
    assert {p.name for p in run.iterdir()} == {
        "train.jsonl", "result.json", "config.yaml", "run.log", "loss.png", "ckpt",
    }  # fmt: skip
    assert json.loads((run / "result.json").read_text()) == json.loads(json.dumps(result.to_dict()))
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")

    steps = [r for r in records(run) if "train_loss" in r]
    assert [r["step"] for r in steps] == list(range(12))
    assert all(r.keys() >= STEP_FIELDS and r["gpu_util_pct"] is None for r in steps)
    assert [r["step"] for r in records(run) if "val_loss" in r] == [0, 6, 12]
    assert result.step0_train_loss == steps[0]["train_loss"]

    with apr.load(run / result.last_checkpoint) as f:
        assert f.verify().ok
        names = [name for name in f if not name.startswith("__training__.")]
        assert sum(name.endswith("_proj.bias") for name in names) == 6
        assert len(names) == 2 * 12 + 2
        assert f.metadata["training"]["base_model"]["name"] == BASE.name
        assert f.metadata["tokenizer.vocabulary"] == apr.load(BASE).metadata["tokenizer.vocabulary"]
        assert not {"resumed_from", "created_at"} & f.metadata.keys()
        assert str(run.parent) not in json.dumps(f.metadata)
    for epoch in (0, 1):
        facts = json.loads((run / "ckpt" / f"epoch-{epoch:03}.metadata.json").read_text())
        assert facts["epoch"] == epoch
        assert facts["val_loss"] == result.val_loss_history[epoch]
        assert facts["val_ppl"] == pytest.approx(math.exp(facts["val_loss"]))
        assert len(facts["optimizer_state_sha"]) == 64


def test_two_runs_write_the_same_bytes(options, train, tmp_path):
    first, second = (options(run_dir=tmp_path / name) for name in "ab")
    results = [train(config) for config in (first, second)]
    assert results[0].val_loss_history == results[1].val_loss_history
    losses = [[r.get("train_loss") for r in records(config.run_dir)] for config in (first, second)]
    assert losses[0] == losses[1]
    for name in ("epoch-000.apr", "epoch-001.apr"):
        assert (first.run_dir / "ckpt" / name).read_bytes() == (second.run_dir / "ckpt" / name).read_bytes()


def test_another_seed_gives_another_order(options, train, tmp_path):
    losses = {
        train(options(run_dir=tmp_path / str(seed), seed=seed, num_steps=1)).step0_train_loss
        for seed in (1, 2)
    }
    assert len(losses) == 2


def test_micro_batches_add_up_to_one_batch(options, train, tmp_path):
    whole = train(options(run_dir=tmp_path / "whole", batch_size=4))
    cut = train(options(run_dir=tmp_path / "cut", batch_size=1, grad_accum=4))
    assert cut.val_loss_history == pytest.approx(whole.val_loss_history, abs=1e-5)


def test_a_run_from_scratch_gives_a_file_to_start_from(options, train, tmp_path):
    arch = tmp_path / "tiny.yaml"
    arch.write_text(
        "{architecture: llama, hidden_size: 32, num_layers: 2, num_heads: 4, num_kv_heads: 2, "
        "intermediate_size: 64, max_position_embeddings: 64, rope_theta: 10000.0, "
        "rms_norm_eps: 1.0e-6, tie_word_embeddings: false}"
    )
    scratch = options(init=None, mode="from-scratch", arch=str(arch), run_dir=tmp_path / "scratch")
    first = train(scratch)
    assert first.initial_val_loss == pytest.approx(math.log(512), abs=0.2)
    assert first.final_val_loss < first.initial_val_loss
    second = train(
        options(init=scratch.run_dir / first.last_checkpoint, mode="from-init", run_dir=tmp_path / "next")
    )
    assert second.initial_val_loss == pytest.approx(first.final_val_loss, abs=1e-6)


def test_there_is_no_flag_for_synthetic_data(options, flags, capsys):
    from apr.cli import main

    for flag in ("--synthetic", "--synthetic=true", "--no-synthetic"):
        assert main(["pretrain", *flags(options()), flag]) == 2
        assert "synthetic" in capsys.readouterr().err


def test_random_ids_cannot_be_learned(options, train, make_shards, tmp_path):
    """Without order, only frequencies can be predicted: the loss stays near their entropy."""
    import numpy as np

    share = np.arange(512, 0, -1) / np.arange(513).sum()
    ids = np.random.default_rng(1).choice(512, 8000, p=share)
    noise = train(options(dataset=make_shards("noise", ids=ids), run_dir=tmp_path / "noise"))
    learned = train(options())
    assert noise.final_val_loss > -(share * np.log(share)).sum() - 0.1
    assert learned.final_val_loss < noise.final_val_loss - 0.2


def test_an_untied_checkpoint_has_its_head_and_starts_another_run(options, train, data, tmp_path):
    import apr
    from apr.model import ModelConfig

    base = data / "imported-0.72" / "from_safetensors_llama_untied.apr"
    first = options(init=base, num_steps=1)
    checkpoint = first.run_dir / train(first).last_checkpoint
    with apr.load(checkpoint) as file, apr.load(base) as source:
        assert file.info("lm_head.weight").shape == source.info("lm_head.weight").shape
        assert ModelConfig.from_metadata(file.metadata) == ModelConfig.from_metadata(
            source.metadata, head_present=True
        )
    second = train(options(init=checkpoint, mode="from-init", num_steps=1, run_dir=tmp_path / "second"))
    assert second.steps_completed == 1


def test_a_callback_that_raises_ends_the_run_and_keeps_what_was_saved(short):
    from apr.train import pretrain

    def broken(record):
        if record.step == 2:
            raise ZeroDivisionError("mine")

    config = short()
    result = pretrain(config, callbacks=Callbacks(on_step=broken), out=io.StringIO())
    assert (result.status, result.exit_code) == ("FAILED", 1)
    assert "ZeroDivisionError: mine" in result.detail
    assert (config.run_dir / result.last_checkpoint).is_file()
    assert "broken" in (config.run_dir / "traceback.txt").read_text()


def test_a_run_leaves_the_process_as_it_was(short, train, tmp_path):
    """Two runs in one process write the same bytes, and do not use the caller's random numbers."""
    import signal

    import torch

    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    threads = {thread.name for thread in threading.enumerate()}
    first, second = (short(run_dir=tmp_path / name) for name in "ab")
    train(first)
    assert torch.equal(torch.rand(3), expected)
    train(second)
    name = "ckpt/epoch-001.apr"
    assert (first.run_dir / name).read_bytes() == (second.run_dir / name).read_bytes()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert {thread.name for thread in threading.enumerate()} <= threads


def test_a_run_works_in_another_thread_and_under_an_event_loop(short, train, tmp_path):
    """As in a notebook, where an event loop runs in the main thread and standard output is not a terminal."""

    async def cell():
        here = train(short(run_dir=tmp_path / "here"))
        return here, await asyncio.to_thread(train, short(run_dir=tmp_path / "there"))

    here, there = asyncio.run(cell())
    assert here.status == there.status == "BUDGET_SPENT"
    assert here.val_loss_history == there.val_loss_history


@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=["lines", "json"])
@pytest.mark.parametrize("bad_step", [1, None], ids=["failed", "done"])
def test_a_closed_pipe_changes_neither_the_run_nor_its_exit_code(
    short, flags, monkeypatch, arguments, bad_step
):
    """As under `apr pretrain … | head -1`."""
    from apr.cli import main
    from apr.train.record.metrics import MetricsFile

    write = MetricsFile.write

    def failing(self, record):
        if "train_loss" in record and record["step"] == bad_step:
            raise ZeroDivisionError
        write(self, record)

    monkeypatch.setattr(MetricsFile, "write", failing)
    reader, writer = os.pipe()
    os.close(reader)
    config = short()
    with os.fdopen(writer, "w") as gone:  # its end would raise too, were anything left in it
        monkeypatch.setattr("sys.stdout", gone)
        code = main(["pretrain", *flags(config), *arguments])
    result = json.loads((config.run_dir / "result.json").read_text())
    expected = ("BUDGET_SPENT", 0, 3) if bad_step is None else ("FAILED", 1, 1)
    assert (result["status"], code, result["steps_completed"]) == expected
    assert f"{result['status']}: " in (config.run_dir / "run.log").read_text()


def test_an_existing_run_is_left_alone(refused, options, train, tmp_path):
    train(options())
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    line, code = refused()
    assert code == 5
    assert "--resume" in line
    assert "--force" in line
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_a_refusal_leaves_no_directory_behind(refused, tmp_path):
    assert refused(num_steps=100, run_dir=tmp_path / "new" / "run")[1] == 5
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    line, _ = refused(run_dir=tmp_path / "file")
    assert f"{tmp_path / 'file'}: " in line


def test_force_moves_the_existing_run_away(options, train, tmp_path):
    train(options())
    first = (tmp_path / "run" / "result.json").read_bytes()
    assert train(options(force=True, num_steps=6)).steps_completed == 6
    assert (tmp_path / "run.bak-1" / "result.json").read_bytes() == first


def test_a_refusal_is_recorded_and_does_not_count_as_a_run(refused, options, train, tmp_path):
    (tmp_path / "run").mkdir()
    assert refused(num_steps=100)[1] == 5
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("REFUSED", 5)
    assert train(options()).steps_completed == 12


def test_a_signal_before_the_first_step_leaves_a_result(options, train, monkeypatch):
    from apr.train import loop

    evaluate = loop.evaluate

    def interrupted(*args, on_progress, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args, on_progress=on_progress, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "evaluate", interrupted)
        stopped = train(options())
    assert (stopped.status, stopped.exit_code, stopped.last_checkpoint) == ("INTERRUPTED", 143, None)
    assert train(options(resume=True)).steps_completed == 12


@pytest.mark.parametrize("name", ["init", "dataset", "val_dataset", "tokenizer", "contract"])
def test_force_does_not_move_away_what_it_needs(options, train, tmp_path, name):
    from apr.errors import RefusedError
    from apr.train.rundir import check_run_dir

    config = options()
    train(config)
    inside = tmp_path / "run" / "inside"
    inside.mkdir()
    with pytest.raises(RefusedError, match=f"--{name.replace('_', '-')} .*inside"):
        check_run_dir(options(force=True, **{name: inside}))
    assert not (tmp_path / "run.bak-1").exists()


def test_options_come_from_a_file_and_flags_win(options, flags, tmp_path, capsys):
    from apr.cli import main

    config = options(num_steps=2, eval_every=2, shuffle=False)
    assert main(["pretrain", *flags(config), "--plan", "--json"]) == 0
    capsys.readouterr()
    path = tmp_path / "options.yaml"
    path.write_text(
        f"init: {BASE}\ndataset: {config.dataset}\nseq-length: {SEQ}\neval_every: 2\n"
        "num_steps: 9\nbatch_size: 4\nlr: 1e-3\nval_tokens: 640\ndevice: cpu\nshuffle: false\n"
    )
    run = tmp_path / "from-file"
    assert main(["pretrain", "--config", str(path), "--steps", "2", "--output-dir", str(run), "--json"]) == 0
    out = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert out["steps_completed"] == 2
    saved = (run / "config.yaml").read_text()
    assert "shuffle: false" in saved
    assert "lr: 0.001" in saved


def test_a_fine_tuned_model_keeps_what_transformers_reads(options, train, tmp_path, data):
    """Through a checkpoint that is resumed from."""
    from tests.convert.test_to_hf import check_side_files, with_side_files

    from apr.convert import convert

    source = tmp_path / "source"
    shutil.copytree(data / "imported-0.72" / "hf_qwen2_tied", source)
    convert(with_side_files(source), tmp_path / "base.apr")
    train(options(init=tmp_path / "base.apr", num_steps=2, eval_every=2))
    (tmp_path / "base.apr").unlink()
    result = train(options(init=tmp_path / "base.apr", num_steps=4, eval_every=2, resume=True, extend=True))
    assert result.steps_completed == 4
    last = max((tmp_path / "run" / "ckpt").glob("epoch-*.apr"))
    convert(last, tmp_path / "hf")
    check_side_files(tmp_path / "hf")
    before, after = (json.loads((path / "config.json").read_text()) for path in (source, tmp_path / "hf"))
    assert before == after | {key: before[key] for key in ("dtype", "torch_dtype") if key in before}


def test_names_in_another_encoding_than_utf8_do_not_end_a_run(options, make_shards, tmp_path):
    import apr
    from apr.train import pretrain

    name = os.fsdecode("modèle".encode("latin-1"))
    base = tmp_path / f"{name}.apr"
    shutil.copyfile(BASE, base)
    shards = make_shards().rename(tmp_path / name)
    config = options(init=base, dataset=shards, run_dir=tmp_path / f"{name}-run")
    with io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict") as strict:
        result = pretrain(config, out=strict)
        strict.seek(0)
        assert r"mod\udce8le" in strict.read()
    assert result.status == "BUDGET_SPENT"
    assert (config.run_dir / "loss.png").exists()
    with apr.load(config.run_dir / result.last_checkpoint) as file:
        assert file.metadata["training"]["base_model"]["name"] == "mod\ufffdle.apr"
    assert r"mod\udce8le" in (config.run_dir / "run.log").read_text()


def test_a_run_starts_from_a_tied_model_with_the_head_alone(options, train, tmp_path):
    """As safetensors' `save_model` leaves it: the run is the same as from the whole file."""
    import apr

    with apr.load(BASE) as whole:
        tensors, metadata = {name: values.clone() for name, values in whole.items()}, dict(whole.metadata)
    del tensors["model.embed_tokens.weight"]
    apr.save(tensors, tmp_path / "head.apr", metadata)
    short = {"num_steps": 3, "eval_every": 3}
    runs = [
        train(options(init=init, run_dir=tmp_path / init.stem, **short))
        for init in (BASE, tmp_path / "head.apr")
    ]
    assert runs[0].val_loss_history == runs[1].val_loss_history
    (first, second) = (records(tmp_path / init) for init in (BASE.stem, "head"))
    assert [record.get("train_loss") for record in first] == [record.get("train_loss") for record in second]
