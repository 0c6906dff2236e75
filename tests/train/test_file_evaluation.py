"""`apr evaluate` reports what the text is to the model: held out, trained on, or unknown."""

import json

import pytest


@pytest.fixture
def evaluate(capsys):
    """Run the command, and return its exit code, line and JSON."""
    from apr.cli import main

    def run(model, dataset, *arguments):
        command = ["evaluate", str(model), "--dataset", str(dataset), "--device", "cpu", *arguments]
        code = main(command)
        line, error = capsys.readouterr()
        if code:
            return code, error.splitlines()[-1], None
        assert main([*command, "--json"]) == 0
        return code, line, json.loads(capsys.readouterr().out)

    return run


def test_text_that_was_trained_on_is_never_called_held_out(options, train, make_shards, evaluate, tmp_path):
    """With --val-dataset, all of --dataset is trained on, even after it was moved."""
    val = make_shards("val", tokens=700, seed=5)
    config = options(val_dataset=val, num_steps=2, eval_every=2, save_dtype="bf16")
    result = train(config)
    moved = config.dataset.rename(tmp_path / "elsewhere")
    for model in (config.run_dir / result.last_checkpoint, config.run_dir / "final.apr"):
        _, line, values = evaluate(model, moved)
        assert values["text"] == "training"
        assert "loss on training text" in line
        assert "held" not in line
        code, error, _ = evaluate(model, moved, "--held-out")
        assert code == 5
        assert "--held-out" in error
        for arguments in ([], ["--held-out"]):
            _, line, values = evaluate(model, val, *arguments)
            assert (values["text"], values["val_tokens"]) == ("held_out", 640)
            assert ": held-out loss " in line
    assert evaluate(config.init, moved, "--seq-length", "32")[2]["text"] == "other"
    assert ": loss " in evaluate(config.run_dir / "final.apr", make_shards("third", seed=6))[1]


def test_only_held_out_text_is_used_whatever_val_tokens_is(options, train, evaluate):
    config = options(num_steps=2, eval_every=2)
    result = train(config)
    last = config.run_dir / result.last_checkpoint
    for arguments in ([], ["--held-out"]):
        _, _, values = evaluate(last, config.dataset, "--val-tokens", "6400", *arguments)
        assert (values["text"], values["val_tokens"]) == ("held_out", 640)
        assert values["val_loss"] == pytest.approx(result.final_val_loss, abs=1e-6)


def test_windows_are_no_longer_than_the_models_positions(options, make_shards, evaluate):
    """Without --seq-length the model decides; a flag that is not passed must not be blamed."""
    shards = make_shards()
    _, _, values = evaluate(options().init, shards)
    assert values["seq_length"] == 256
    refusal = evaluate(options().init, shards, "--seq-length", "300")[1]
    assert "--seq-length 300" in refusal
    assert "use --seq-length 256" in refusal


def test_evaluate_gives_the_same_loss_as_the_run(options, train, capsys):
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
        printed, said = capsys.readouterr()
        values = json.loads(printed)
        assert values["val_loss"] == result.final_val_loss
        assert values["val_tokens"] == 640
        assert said.count("--batch-size has no effect") == arguments.count("--batch-size")


@pytest.mark.parametrize("change", ["damaged", "int64", "random"])
def test_shards_that_cannot_be_trusted_are_named(options, make_shards, evaluate, change):
    import hashlib

    import numpy as np

    folder = make_shards("other")
    path = folder / "shard-00000.bin"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    facts = {"shards": [{"name": path.name, "tokens": 8000, "sha256": sha256}]}
    ids = np.fromfile(path, "<u4")
    if change == "damaged":
        ids[4000] ^= 1
    else:
        facts = {}
        ids = ids[:4000].astype("<i8") if change == "int64" else np.arange(8000, dtype="<u4") % 512
    ids.tofile(path)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | facts))
    before = (folder / "manifest.json").read_bytes()
    code, error, _ = evaluate(options().init, folder, "--seq-length", "32")
    assert code == 5
    word = {"damaged": "changed", "int64": "64-bit integers", "random": "at random"}[change]
    assert word in error
    assert (folder if change == "random" else path).name in error
    if change == "damaged":
        assert (folder / "manifest.json").read_bytes() == before


def test_the_ids_that_are_named_are_those_that_were_evaluated(options, train, make_shards, evaluate):
    """Windows of 32 ids from the first held-out id on, and one more id that the last window predicts."""
    config = options(num_steps=2, eval_every=2)
    result = train(config)
    last = config.run_dir / result.last_checkpoint
    start = 8000 - 1 - 7999 % 32 - 20 * 32
    for tokens in (64, 640):
        _, line, values = evaluate(last, config.dataset, "--val-tokens", str(tokens))
        assert values["ids"] == f"{start:,} to {start + tokens:,} of the held-out ids {start:,} to 7,999"
        assert f"{tokens} tokens" in line
    base = ["--seq-length", "32", "--val-tokens", "96"]
    assert evaluate(config.init, config.dataset, *base)[2]["ids"] == "0 to 96 of ids 0 to 7,999"
    few = make_shards("few", tokens=33)
    _, line, _ = evaluate(config.init, few, "--seq-length", "1", "--val-tokens", "1")
    assert "1 token (" in line
