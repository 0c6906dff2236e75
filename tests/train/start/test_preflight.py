"""What is refused before the first step: one line, the exit code, nothing overwritten."""

import json
import shutil

import pytest
from tests.train.conftest import BASE, DATA, SEQ, flipped


def test_a_missing_gpu_never_becomes_the_cpu(refused):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    line, code = refused(device="cuda")
    assert code == 9
    assert "--device cuda" in line
    assert refused(device="tpu")[1] == 2


def test_a_missing_init_file(refused, tmp_path):
    line, code = refused(init=tmp_path / "none.apr")
    assert code == 3
    assert "none.apr" in line


def test_a_damaged_init_file(refused, tmp_path):
    damaged = tmp_path / "damaged.apr"
    content = bytearray(BASE.read_bytes())
    content[-1000] ^= 1
    damaged.write_bytes(content)
    assert refused(init=damaged)[1] == 4


def test_a_gguf_file_is_named_as_such(refused):
    line, code = refused(init=DATA / "qwen2_tied.gguf")
    assert code == 4
    assert "GGUF" in line


def test_lost_biases(refused):
    line, code = refused(init=DATA.parent / "aprender-0.72" / "qwen2_biases_lost.apr")
    assert code == 6
    assert "q_proj.bias" in line


def test_a_tensor_left_over(refused, tmp_path):
    import torch

    import apr

    source = apr.load(BASE)
    apr.save({**source, "classifier.weight": torch.ones(2, 64)}, tmp_path / "more.apr", dict(source.metadata))
    line, code = refused(init=tmp_path / "more.apr")
    assert code == 6
    assert "classifier.weight" in line


def test_an_encoder_is_refused_by_name(refused, tmp_path):
    import torch

    import apr

    apr.save({"w": torch.ones(2)}, tmp_path / "bert.apr", {"hf_architecture": "BertModel"})
    line, code = refused(init=tmp_path / "bert.apr")
    assert code == 5
    assert "BertModel" in line


def test_a_vocabulary_larger_than_the_models(refused, tmp_path):
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(DATA / "hf_qwen2_tied", tokenizer)
    spec = json.loads((tokenizer / "tokenizer.json").read_text())
    spec["added_tokens"].append({**spec["added_tokens"][0], "id": 512, "content": "<|extra|>"})
    (tokenizer / "tokenizer.json").write_text(json.dumps(spec))
    line, code = refused(tokenizer=tokenizer)
    assert code == 5
    assert "513" in line
    assert "512" in line


def test_ids_beyond_the_vocabulary_name_the_shard(refused, make_shards):
    import numpy as np

    ids = np.random.default_rng(0).integers(0, 512, 8000) // 2 * np.arange(8000) % 512
    ids[4321] = 512
    line, code = refused(dataset=make_shards("beyond", ids=ids))
    assert code == 5
    assert "shard-00000.bin" in line
    assert "id 512" in line


def test_fewer_tokens_than_planned(refused):
    line, code = refused(num_steps=100)
    assert code == 5
    assert "400 windows" in line
    assert "--allow-shard-cycle" in line


@pytest.mark.parametrize("option", ["dataset", "val_dataset"])
def test_a_corpus_of_one_id(refused, make_shards, option):
    import numpy as np

    ids = np.full(8000, 3)
    ids[::997] = 5
    line, code = refused(**{option: make_shards("unk", ids=ids)})
    assert code == 5
    assert "id 3" in line
    assert "unk" in line


def test_texts_that_end_at_once(refused, make_shards):
    import numpy as np

    ids = np.random.default_rng(0).integers(1, 200, 8000)
    ids[::3] = 0
    assert refused(dataset=make_shards("ends", ids=ids, eos_token_id=0))[1] == 5


def test_a_manifest_of_another_vocabulary(refused, make_shards):
    line, code = refused(dataset=make_shards("large", vocab_size=151665))
    assert code == 5
    assert "151665" in line
    assert refused(dataset=make_shards("small", vocab_size=300), tokenizer=BASE)[1] == 5


def test_a_missing_contract(refused, tmp_path):
    assert refused(contract=tmp_path / "none.yaml")[1] == 3


def test_held_out_shards_that_are_trained_on(refused, make_shards):
    line, code = refused(dataset=make_shards(), val_dataset=make_shards("copy"))
    assert code == 5
    assert "held-out" in line


def test_a_directory_without_a_manifest_or_unfinished(refused, make_shards):
    folder = make_shards()
    (folder / "manifest.json").unlink()
    line, code = refused()
    assert code == 3
    assert "repair-manifest" in line
    line, code = refused(dataset=make_shards("unfinished", complete=False))
    assert code == 5
    assert "unfinished" in line


def test_a_window_beyond_the_models_positions(refused):
    line, code = refused(seq_length=300, num_steps=5)
    assert code == 5
    assert "256 positions" in line
    assert "use --seq-length 256" in line


def test_too_little_to_hold_out(refused, make_shards):
    line, code = refused(dataset=make_shards("short", tokens=SEQ + 5), num_steps=1)
    assert code == 5
    assert "--seq-length" in line


def test_an_undecidable_contract_is_refused_before_the_run(refused, data, tmp_path):
    line, code = refused(contract=data.parents[1] / "contracts" / "apr-container-v2.yaml")
    assert code == 2
    assert "apr-container-v2.yaml" in line
    assert not (tmp_path / "run").exists()


@pytest.fixture
def everything_wrong(options, flags, make_shards, tmp_path):
    """Return a command with seven independent mistakes."""
    import numpy as np

    degenerate = make_shards("unk", ids=np.full(8000, 3), vocab_size=151665)
    config = options(
        dataset=degenerate,
        val_dataset=tmp_path / "nowhere",
        init=DATA.parent / "aprender-0.72" / "qwen2_biases_lost.apr",
        tokenizer=tmp_path / "no-tokenizer",
        contract=tmp_path / "no-contract.yaml",
        device="cuda:99",
        warmup_steps=11,
        num_steps=12,
    )
    return [*flags(config), "--warmup-steps", "12"]


def test_all_problems_are_reported_at_once(everything_wrong, capsys, tmp_path):
    from apr.cli import main

    assert main(["pretrain", *everything_wrong]) == 2  # of the first: a warm-up without a cosine
    lines = capsys.readouterr().err.splitlines()
    for n, words in enumerate(
        (
            "--warmup-steps 12",
            "--device cuda:99",
            "no-contract.yaml",
            "nowhere",
            "no-tokenizer",
            "q_proj.bias",
            "does not look like text",
        )
    ):
        assert words in lines[n]
        assert lines[n].startswith("apr pretrain: error: ")
    assert len(lines) == 7
    assert not (tmp_path / "run").exists()


def test_a_refusal_is_json_for_scripts(everything_wrong, capsys, tmp_path):
    from apr.cli import main

    (tmp_path / "run").mkdir()
    assert main(["pretrain", *everything_wrong, "--json"]) == 2
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["status"], result["exit_code"], len(result["problems"])) == ("REFUSED", 2, 7)
    assert [line.removeprefix("apr pretrain: error: ") for line in err.splitlines()] == result["problems"]
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (written["status"], written["exit_code"]) == ("REFUSED", 2)
    assert all(problem in written["detail"] for problem in result["problems"])
    assert main(["pretrain", "--json", "--lr", "-1", "--dataset", "d", "--run-dir", "r", "--init", "i"]) == 2
    assert json.loads(capsys.readouterr().out)["problems"] == ["--lr must be greater than 0, not -1.0"]


def test_weights_are_checked_when_something_else_is_wrong(refused, options, flags, tmp_path, capsys):
    import torch

    import apr
    from apr.cli import main

    source = apr.load(BASE)
    wrong = {name: source[name].bfloat16().view(torch.float16) for name in source if "mlp" in name}
    apr.save({**source, **wrong}, tmp_path / "mistagged.apr", dict(source.metadata))
    assert main(["pretrain", *flags(options(init=tmp_path / "mistagged.apr", num_steps=100))]) == 5
    windows, weights = capsys.readouterr().err.splitlines()
    assert "400 windows" in windows
    assert weights.count("bf16") == 6
    assert refused(init=tmp_path / "mistagged.apr")[1] == 6


def test_a_preflight_error_survives_a_process_pool():
    import pickle

    from apr.errors import PreflightError, RefusedError, UsageError

    error = pickle.loads(pickle.dumps(PreflightError([UsageError("a"), RefusedError("b")])))
    assert (str(error), error.exit_code, len(error.problems)) == ("a\nb", 2, 2)


def test_the_warning_about_few_tokens_can_be_silenced(options):
    from apr.train import plan

    config = {"init": None, "mode": "from-scratch", "arch": "qwen2-4m"}
    assert "per parameter" in str(plan(options(**config)))
    assert "per parameter" not in str(plan(options(**config, force_under_provisioned=True)))


@pytest.mark.parametrize(
    ("asked", "device", "steps", "compiled", "word"),
    [
        (None, "cuda", 2000, True, "auto"),
        (None, "cuda", 20, False, "auto"),
        (None, "cpu", 2000, False, "auto"),
        (True, "cpu", 20, True, "asked"),
        (False, "cuda", 2000, False, "asked"),
    ],
)
def test_auto_compiles_where_the_run_is_long_enough(options, asked, device, steps, compiled, word):
    import torch

    from apr.train.start.preflight import _compiles

    result, why = _compiles(options(compile=asked), torch.device(device), steps)
    assert result is compiled
    assert word in why


def test_what_auto_chose_is_kept_by_a_resumed_run(options, train, train_until):
    from apr.options import options_from_yaml
    from apr.train import PretrainConfig

    assert train_until(options(), 3).status == "INTERRUPTED"
    config = options()
    assert options_from_yaml(PretrainConfig, config.run_dir / "config.yaml")["compile"] is False
    assert train(options(resume=True)).steps_completed == 12


def recorded(folder):
    """Record the hash of each shard, as its encoder does, and return the folder."""
    import hashlib

    manifest = json.loads((folder / "manifest.json").read_text())
    rows = [
        {
            "name": path.name,
            "tokens": path.stat().st_size // 4,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(folder.glob("*.bin"))
    ]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"shards": rows}))
    return folder


def tree(root):
    """Return the contents and times of everything below a directory."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in (root, *root.rglob("*"))
    }


def unsuspected(path):
    """Change a byte of a file and set its time back."""
    import os

    status = path.stat()
    path.write_bytes(flipped(path.read_bytes()))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("option", ["dataset", "val_dataset"])
@pytest.mark.parametrize("more", [[], ["--plan"]])
@pytest.mark.parametrize("when", ["before the first scan", "after a kept scan", "unsuspected"])
def test_a_damaged_shard_is_named_and_nothing_is_written(refused, make_shards, tmp_path, option, more, when):
    from apr.data import ShardDir

    folder = recorded(make_shards("damaged", shards=3, seed=3))
    if when != "before the first scan":
        ShardDir(folder).scan()
    path = folder / "shard-00001.bin"
    if when == "unsuspected":
        unsuspected(path)
    else:
        path.write_bytes(flipped(path.read_bytes()))
    make_shards()
    before = tree(tmp_path)
    line, code = refused(*more, **{option: folder})
    assert code == 5
    assert "shard-00001.bin" in line
    assert "changed" in line
    after = tree(tmp_path)
    if not more:
        # The run directory was claimed and removed again.
        before.pop(tmp_path)
        after.pop(tmp_path)
    assert after == before


def test_a_plan_writes_nothing(options, make_shards, tmp_path, flags, capsys):
    from apr.cli import main

    config = options(dataset=recorded(make_shards("a", shards=3)), val_dataset=make_shards("b", seed=7))
    before = tree(tmp_path)
    assert main(["pretrain", *flags(config), "--plan"]) == 0
    capsys.readouterr()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("option", ["dataset", "val_dataset"])
@pytest.mark.parametrize(
    ("dtype", "name"), [("<i8", "64-bit integers"), ("<u2", "16-bit"), (">u4", "big-endian")]
)
def test_shards_of_another_type_are_named(refused, make_shards, option, dtype, name):
    import numpy as np

    folder = make_shards("foreign")
    ids = np.fromfile(folder / "shard-00000.bin", "<u4").astype(dtype)
    ids.tofile(folder / "shard-00000.bin")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["total_tokens"] = ids.nbytes // 4
    (folder / "manifest.json").write_text(json.dumps(manifest))
    line, code = refused(**{option: folder})
    assert code == 5
    assert "shard-00000.bin" in line
    assert name in line


@pytest.mark.parametrize("option", ["dataset", "val_dataset"])
def test_ids_drawn_at_random_are_not_text(refused, make_shards, option):
    import numpy as np

    ids = np.random.default_rng(0).integers(0, 512, 8000)
    line, code = refused(**{option: make_shards("random", ids=ids)})
    assert code == 5
    assert "drawn at random" in line


@pytest.mark.parametrize("form", ["the keys of GGUF", "tokenizer.json"])
@pytest.mark.parametrize("given", [True, False], ids=["--tokenizer", "in the file alone"])
def test_the_tokenizer_in_init_is_enough(options, refused, train, make_shards, tmp_path, form, given):
    """Texts that end at once are noticed by its end of text, and checkpoints and samples have it."""
    import numpy as np

    import apr
    from apr.data.tokenizers import load_tokenizer

    with apr.load(BASE) as file:
        tensors, metadata = {name: file[name].clone() for name in file}, dict(file.metadata)
    directory = DATA / "hf_qwen2_tied"
    metadata = {key: value for key, value in metadata.items() if not key.startswith("tokenizer.")}
    if form == "tokenizer.json":
        names = ("tokenizer.json", "tokenizer_config.json")
        metadata["hf_tokenizer"] = {name: (directory / name).read_text() for name in names}
    else:
        metadata |= load_tokenizer(directory).metadata()
    init = tmp_path / "init.apr"
    apr.save(tensors, init, metadata=metadata)
    more = {"init": init, "tokenizer": init if given else None}
    result = train(options(**more, num_steps=1, sample_prompt="a b"))
    assert result.exit_code == 0, result
    with apr.load(tmp_path / "run" / result.last_checkpoint) as checkpoint:
        assert checkpoint.metadata.get("hf_tokenizer") == metadata.get("hf_tokenizer")
        assert load_tokenizer(checkpoint.path).tokenizer.to_str() == load_tokenizer(init).tokenizer.to_str()
    ids = np.random.default_rng(0).zipf(1.3, 8000) % 400
    ids[::3] = load_tokenizer(directory).eos_id
    line, code = refused(**more, dataset=make_shards("ends", ids=ids), run_dir=tmp_path / "refused")
    assert code == 5
    assert "end" in line.split(": ", 3)[-1]
