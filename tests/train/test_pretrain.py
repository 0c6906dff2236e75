"""A run from an .apr to an .apr: what it writes, and that the numbers are anybody's."""

import json
import math

import pytest
from tests.train.conftest import BASE, SEQ

STEP_FIELDS = {"step", "train_loss", "grad_norm", "lr", "tokens_per_sec", "gpu_util_pct"}


# 8000 ids make 249 windows of 32; the 640 held-out tokens are the last 20 of them, the ids before make 228.
HELD_OUT_START = (249 - 20) * SEQ
TRAIN_WINDOWS = (HELD_OUT_START - 1) // SEQ


def records(run):
    return [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]


def transformers_loss(directory_or_file, windows):
    """Mean cross entropy of [n, T + 1] windows, by transformers and nothing of ours but the tensors."""
    import torch
    from transformers import AutoModelForCausalLM

    import apr

    model = AutoModelForCausalLM.from_pretrained(BASE.parent / "hf_qwen2_tied", dtype=torch.float32)
    weights = {
        name: value for name, value in apr.load(directory_or_file).items() if not name.startswith("__")
    }
    missing = model.load_state_dict(weights, strict=False)
    assert missing.missing_keys in ([], ["lm_head.weight"])
    assert not missing.unexpected_keys
    ids = torch.from_numpy(windows)
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()


def held_out_windows(folder, start):
    """Cut from the raw file, by the specification's words alone."""
    import numpy as np

    ids = np.fromfile(folder / "shard-00000.bin", "<u4").astype(np.int64)[start:]
    count = (len(ids) - 1) // SEQ
    return np.stack([ids[i * SEQ : i * SEQ + SEQ + 1] for i in range(count)])


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


def test_the_held_out_loss_is_transformers_own(options, train):
    config = options()
    result = train(config)
    windows = held_out_windows(config.dataset, HELD_OUT_START)
    assert len(windows) == 20
    assert result.initial_val_loss == pytest.approx(transformers_loss(BASE, windows), abs=1e-5)
    last = config.run_dir / result.last_checkpoint
    assert result.final_val_loss == pytest.approx(transformers_loss(last, windows), abs=1e-5)


def test_steps_are_those_of_transformers_and_plain_adamw(options, train):
    """Losses, gradient norms and rates of eight steps against an independent loop."""
    import torch
    from transformers import AutoModelForCausalLM

    from apr.data.shards import ShardDir

    config = options(
        num_steps=8, steps_per_epoch=8, warmup_steps=2, grad_accum=2, batch_size=2, weight_decay=0.1
    )
    train(config)
    model = AutoModelForCausalLM.from_pretrained(BASE.parent / "hf_qwen2_tied", dtype=torch.float32)
    decay = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if not (p.dim() == 2 and "embed" not in n)]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, fused=False, foreach=False)
    order = reference_order(TRAIN_WINDOWS, seed=42)
    ids = torch.from_numpy(ShardDir(config.dataset).read(0, 8000).astype("int64"))
    for record in [r for r in records(config.run_dir) if "train_loss" in r]:
        step = record["step"]
        batch = torch.stack([ids[w * SEQ : w * SEQ + SEQ + 1] for w in order[step * 4 : step * 4 + 4]])
        logits = model(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        share = (step + 1 - 2) / 6
        lr = 2e-3 * (step + 1) / 2 if step < 2 else 2e-3 * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)
        assert record["train_loss"] == pytest.approx(loss.item(), abs=1e-5)
        assert record["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        assert record["lr"] == pytest.approx(lr, rel=1e-12)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()


def reference_order(count, seed):
    """The specification's bijection in plain integers."""
    mask64 = 2**64 - 1

    def mix(z):
        z ^= z >> 30
        z = z * 0xBF58476D1CE4E5B9 & mask64
        z ^= z >> 27
        z = z * 0x94D049BB133111EB & mask64
        return z ^ z >> 31

    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask, state, keys = 2**half - 1, seed * 0xD1342543DE82EF95 & mask64, []
    for _ in range(8):
        state = state + 0x9E3779B97F4A7C15 & mask64
        keys.append(mix(state))

    def place(p):
        while True:
            left, right = p >> half, p & mask
            for key in keys:
                left, right = right, left ^ (mix(right + key & mask64) & mask)
            p = left << half | right
            if p < count:
                return p

    return [place(p) for p in range(count)]


def test_evaluate_gives_the_number_of_the_run(options, train, capsys):
    from apr.cli import main

    config = options()
    result = train(config)
    last = str(config.run_dir / result.last_checkpoint)
    for arguments in ([], ["--batch-size", "7"], ["--held-out"]):
        assert (
            main(
                ["evaluate", last, "--dataset", str(config.dataset), "--device", "cpu", "--json", *arguments]
            )
            == 0
        )
        found = json.loads(capsys.readouterr().out)
        assert found["val_loss"] == pytest.approx(result.final_val_loss, abs=1e-6)
        assert found["val_tokens"] == 640


def test_a_directory_of_its_own_is_held_out_whole(options, train, make_shards):
    held_out = make_shards("held-out", tokens=700, seed=5)
    result = train(options(val_dataset=held_out, num_steps=2, steps_per_epoch=2))
    windows = held_out_windows(held_out, 0)[:20]
    assert result.initial_val_loss == pytest.approx(transformers_loss(BASE, windows), abs=1e-5)


def test_two_runs_write_the_same_bytes(options, train, tmp_path):
    first, second = (options(run_dir=tmp_path / name) for name in "ab")
    results = [train(config) for config in (first, second)]
    assert results[0].val_loss_history == results[1].val_loss_history
    losses = [[r.get("train_loss") for r in records(config.run_dir)] for config in (first, second)]
    assert losses[0] == losses[1]
    for name in ("epoch-000.apr", "epoch-001.apr"):
        assert (first.run_dir / "ckpt" / name).read_bytes() == (second.run_dir / "ckpt" / name).read_bytes()


def test_another_seed_is_another_order(options, train, tmp_path):
    losses = {
        train(options(run_dir=tmp_path / str(seed), seed=seed, num_steps=1)).step0_train_loss
        for seed in (1, 2)
    }
    assert len(losses) == 2


def test_micro_batches_are_one_batch(options, train, tmp_path):
    whole = train(options(run_dir=tmp_path / "whole", batch_size=4))
    cut = train(options(run_dir=tmp_path / "cut", batch_size=1, grad_accum=4))
    assert cut.val_loss_history == pytest.approx(whole.val_loss_history, abs=1e-5)


def test_from_scratch_then_from_its_own_file(options, train, tmp_path):
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


def test_a_warning_for_few_tokens_from_scratch_can_be_silenced(options):
    from apr.train import plan

    config = {"init": None, "mode": "from-scratch", "arch": "qwen2-4m"}
    assert "a parameter" in str(plan(options(**config)))
    assert "a parameter" not in str(plan(options(**config, force_under_provisioned=True)))


def test_a_plan_trains_nothing(options):
    from apr.train import plan

    config = options()
    planned = plan(config)
    assert not config.run_dir.exists()
    assert planned.seconds_per_step > 0
    assert planned.to_dict()["training_windows"] == TRAIN_WINDOWS
    assert "held out: the last 20 windows" in str(planned)


def test_a_plan_says_everything_that_would_happen(options, tmp_path, flags, capsys):
    import apr
    from apr.cli import main

    config = options(val_tokens=640, num_steps=12)
    assert main(["pretrain", *flags(config), "--plan", "--json"]) == 0
    out, err = capsys.readouterr()
    said = json.loads(out)
    sizes = {
        name: math.prod(apr.load(BASE).info(name).shape)
        for name in apr.load(BASE)
        if name != "lm_head.weight"
    }
    groups = said["parameter_groups"]
    assert sum(groups.values()) == said["parameters"] == sum(sizes.values())
    assert groups["embedding"] == sizes["model.embed_tokens.weight"]
    assert groups["attention"] == sum(n for name, n in sizes.items() if "self_attn" in name)
    assert groups["mlp"] == sum(n for name, n in sizes.items() if "mlp" in name)
    assert groups["norms"] == sum(n for name, n in sizes.items() if "norm" in name)
    assert groups["head"] == 0
    assert said["architecture"]["num_kv_heads"] == apr.load(BASE).metadata["num_kv_heads"]
    assert said["tokens"] == 12 * 4 * SEQ
    assert said["data_epochs"] == pytest.approx(12 * 4 / TRAIN_WINDOWS, abs=1e-4)
    assert said["checkpoint_bytes"] == 12 * said["parameters"]
    assert said["disk_bytes"] == 2 * said["checkpoint_bytes"]  # the second epoch's beside the first one's
    assert 0 < said["memory_bytes"] < said["free_memory_bytes"]
    assert said["seconds"] == pytest.approx(
        12 * said["seconds_per_step"]
        + 3 * said["seconds_per_evaluation"]
        + 2 * said["seconds_per_checkpoint"]
    )
    for words in ("embedding 32,768", "tokens: 1,536", "are free on cpu", "disk: ", "s a checkpoint"):
        assert words in err
    assert not list(tmp_path.glob(".apr-plan-*"))


def test_the_picture_names_what_it_shows(tmp_path):
    """Losses, target, best point and title stand in the picture; a run that was cut short has one too."""
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from apr.train.record.plot import plot_losses

    drawn, original = [], Figure.savefig
    records = [{"tokens_seen": 64 * n, "train_loss": 5 - n / 50} for n in range(120)]
    records += [{"tokens_seen": 64 * n, "val_loss": loss} for n, loss in ((0, 5.2), (60, 3.9), (119, 4.1))]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            Figure, "savefig", lambda self, *a, **k: (drawn.append(self), original(self, *a, **k))
        )
        plot_losses(records, tmp_path / "a.png", target=2.2, title="m on $_$ d")
        plot_losses(records[:1], tmp_path / "b.png", target=2.2, title="m on d")
    axes = drawn[0].axes[0]
    assert isinstance(axes, Axes)
    assert axes.get_title(loc="left") == "m on $_$ d"  # a name may hold what sets formulas
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [
        "train, each step",
        "train, smoothed",
        "held-out",
        "best held-out: 3.9000",
        "target: 2.2",
    ]
    smooth = axes.get_lines()[1]
    assert smooth.get_ydata()[0] == pytest.approx(5 - 1 / 50)  # of the first three
    assert smooth.get_xdata()[0] == 64


def test_the_contract_is_decided_and_changes_no_exit_code(options, train, data):
    contract = data.parents[1] / "contracts" / "apr-pretrain-init-finetune-v1.yaml"
    config = options(contract=contract)
    result = train(config)
    assert result.exit_code == 0
    assert result.contract["ok"] is False  # the base is random: its first loss is above 0.7 ln V
    verdicts = {f["id"][-3:]: f["passed"] for f in result.contract["falsifiers"]}
    assert verdicts == {"001": True, "002": True, "003": False, "004": True, "005": False, "006": None}
    assert json.loads((config.run_dir / "result.json").read_text())["contract"]["ok"] is False


def test_options_come_from_a_file_and_flags_win(options, flags, tmp_path, capsys):
    from apr.cli import main

    config = options(num_steps=2, steps_per_epoch=2, shuffle=False)
    assert main(["pretrain", *flags(config), "--plan", "--json"]) == 0
    capsys.readouterr()
    path = tmp_path / "options.yaml"
    path.write_text(
        f"init: {BASE}\ndataset: {config.dataset}\nseq-length: {SEQ}\nsteps_per_epoch: 2\n"
        "num_steps: 9\nbatch_size: 4\nlr: 1e-3\nval_tokens: 640\ndevice: cpu\nshuffle: false\n"
    )
    run = tmp_path / "from-file"
    assert main(["pretrain", "--config", str(path), "--steps", "2", "--output-dir", str(run), "--json"]) == 0
    out = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert out["steps_completed"] == 2
    saved = (run / "config.yaml").read_text()
    assert "shuffle: false" in saved
    assert "lr: 0.001" in saved
