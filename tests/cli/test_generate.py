"""`apr generate`: text, ids, JSON, chats, what it refuses, and Ctrl-C."""

import json
import signal
import subprocess
import sys

import pytest

MESSAGE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<answer>"


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level tokenizer with 300 ids, one of which ends texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the sea is wide and the sky is blue and the ship is small"] * 3, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def theirs(tokenizer):
    from tests.model.tiny import transformers_model

    return transformers_model(
        "llama", vocab_size=tokenizer.get_vocab_size(), initializer_range=0.4, eos_token_id=0
    ).eval()


@pytest.fixture(scope="module")
def file(tokenizer, theirs, tmp_path_factory):
    from tests.model.tiny import ours

    import apr

    model = ours(theirs)
    metadata = model.config.to_metadata() | {
        "hf_tokenizer": {
            "tokenizer.json": tokenizer.to_str(),
            "tokenizer_config.json": json.dumps({"eos_token": "<|endoftext|>"}),
        }
    }
    path = tmp_path_factory.mktemp("generate") / "m.apr"
    apr.save(model.state_dict(), path, metadata)
    return path


@pytest.fixture
def stamped(file, tmp_path):
    import apr

    apr.stamp(file, {"chat_template": MESSAGE}, tmp_path / "chat.apr")
    return tmp_path / "chat.apr"


@pytest.fixture
def without_tokenizer(file, tmp_path):
    import apr

    with apr.load(file) as source:
        metadata = {key: value for key, value in source.metadata.items() if key != "hf_tokenizer"}
        apr.save(dict(source), tmp_path / "bare.apr", metadata)
    return tmp_path / "bare.apr"


def their_ids(theirs, ids, count):
    import torch

    ids = torch.tensor([ids])
    out = theirs.generate(ids, max_new_tokens=count, do_sample=False, pad_token_id=1,
                          attention_mask=torch.ones_like(ids))  # fmt: skip
    return out[0, ids.shape[1] :].tolist()


def test_text_and_json_are_transformers_tokens(run, file, theirs, tokenizer):
    prompt = tokenizer.encode("the sea").ids
    expected = their_ids(theirs, prompt, 30)
    text = tokenizer.decode(expected, skip_special_tokens=True)
    code, out, err = run("generate", file, "--prompt", "the sea", "--max-tokens", 30)
    assert (code, out) == (0, text + "\n")
    assert "tokens/s" in err
    code, out, _ = run("generate", file, "--prompt", "the sea", "--max-tokens", 30, "--json")
    result = json.loads(out)
    assert code == 0
    assert (result["prompt_ids"], result["ids"], result["text"]) == (prompt, expected, text)
    assert len(result["logprobs"]) == len(expected)
    assert all(value <= 0 for value in result["logprobs"])
    assert result["samples"] == [{key: result[key] for key in ("text", "ids", "logprobs", "finish")}]


def test_the_prompt_is_read_from_standard_input(run, file, monkeypatch):
    import io

    _, expected, _ = run("generate", file, "--prompt", "the\nsky", "--max-tokens", 8)
    monkeypatch.setattr(sys, "stdin", io.StringIO("the\nsky\n"))
    assert run("generate", file, "--max-tokens", 8)[:2] == (0, expected)


def test_special_tokens_in_a_prompt_count_as_such(run, file):
    _, out, _ = run("generate", file, "--prompt", "a<|endoftext|>b", "--max-tokens", 1, "--json")
    assert 0 in json.loads(out)["prompt_ids"]


def test_sampling_repeats_with_its_seed(run, file):
    flags = ("generate", file, "--prompt", "the", "--max-tokens", 12, "--temperature", 1.5, "--json")
    first, again = (json.loads(run(*flags, "--n", 3, "--seed", 7)[1]) for _ in range(2))
    assert first["samples"] == again["samples"]
    assert first["samples"][0]["ids"] != first["samples"][1]["ids"]
    drawn = json.loads(run(*flags)[1])
    assert json.loads(run(*flags, "--seed", drawn["seed"])[1])["ids"] == drawn["ids"]
    _, out, _ = run("generate", file, "--prompt", "the", "--max-tokens", 12, "--n", 2, "--top-k", 4)
    assert out.count("---") == 2


def test_a_stop_text_ends_the_text_before_it(run, file):
    _, whole, _ = run("generate", file, "--prompt", "the", "--max-tokens", 20)
    stop = whole[3:5]
    code, out, _ = run("generate", file, "--prompt", "the", "--max-tokens", 20, "--stop", stop, "@@")
    assert (code, out) == (0, whole[: whole.find(stop)] + "\n")
    _, out, _ = run("generate", file, "--prompt", "the", "--max-tokens", 20, "--stop", stop, "--json")
    result = json.loads(out)
    assert result["finish"] == "stop"
    assert len(result["ids"]) < 20


def test_chat_uses_the_templates_text(run, stamped, tokenizer):
    _, out, _ = run("generate", stamped, "--prompt", "the sky", "--chat", "--system", "s", "--max-tokens", 4,
                    "--json")  # fmt: skip
    expected = tokenizer.encode("<system>s<user>the sky<answer>", add_special_tokens=False).ids
    assert json.loads(out)["prompt_ids"] == expected


def test_ids_need_no_tokenizer(run, file, without_tokenizer):
    _, out, _ = run("generate", file, "--ids", 70, 71, "--max-tokens", 9, "--json")
    expected = json.loads(out)["ids"]
    code, out, err = run("generate", without_tokenizer, "--ids", 70, 71, "--max-tokens", 9)
    assert (code, out.split()) == (0, [str(id_) for id_ in expected])
    assert "tokenizer" in err
    result = json.loads(run("generate", without_tokenizer, "--ids", 70, 71, "--max-tokens", 9, "--json")[1])
    assert (result["ids"], result["text"]) == (expected, None)


def test_another_tokenizer_can_be_passed(run, file, without_tokenizer, tokenizer, tmp_path):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    _, expected, _ = run("generate", file, "--prompt", "the", "--max-tokens", 6)
    _, out, _ = run(
        "generate", without_tokenizer, "--prompt", "the", "--max-tokens", 6, "--tokenizer", tmp_path
    )
    assert out == expected


def test_a_text_without_a_tokenizer_is_refused_with_the_way_out(run, without_tokenizer):
    code, out, err = run("generate", without_tokenizer, "--prompt", "the")
    assert (code, out) == (4, "")
    assert "bare.apr" in err
    assert "--ids" in err


@pytest.mark.parametrize(
    ("flags", "code", "word"),
    [
        (["--prompt", "a " * 200], 5, "128"),
        (["--prompt", ""], 5, "empty"),
        (["--ids", "5", "400"], 5, "400"),
        (["--prompt", "a", "--chat"], 5, "template"),
        (["--prompt", "a", "--system", "b"], 2, "--chat"),
        (["--prompt", "a", "--ids", "1"], 2, "--ids"),
        (["--prompt", "a", "--stop", ""], 2, "--stop"),
        (["--prompt", "a", "--max-tokens", "0"], 2, "--max-tokens"),
        (["--prompt", "a", "--temperature", "-1"], 2, "--temperature"),
        (["--prompt", "a", "--top-k", "0"], 2, "--top-k"),
        (["--prompt", "a", "--top-p", "1.5"], 2, "--top-p"),
        (["--prompt", "a", "--min-p", "-0.1"], 2, "--min-p"),
        (["--prompt", "a", "--seed", "-1"], 2, "--seed"),
        (["--prompt", "a", "--n", "0"], 2, "--n"),
        (["--prompt", "a", "--n", "2", "--temperature", "0"], 2, "--n"),
        (["--prompt", "a", "--device", "tpu"], 2, "--device"),
        (["--prompt", "a", "--tokenizer", "nowhere"], 3, "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(run, file, flags, code, word):
    got, out, err = run("generate", file, *flags)
    assert (got, out) == (code, "")
    assert word in err
    assert err.count("\n") == 1


def test_a_file_that_is_not_a_decoder_is_refused(run, tmp_path):
    import numpy as np

    import apr

    apr.save({"w": np.zeros(3, np.float32)}, tmp_path / "w.apr", {"model_type": "bert"})
    code, _, err = run("generate", tmp_path / "w.apr", "--prompt", "a")
    assert code == 5
    assert "w.apr" in err
    assert "bert" in err


def test_ctrl_c_keeps_what_was_generated(file, tmp_path):
    """The signal comes after the fifth token, in a process of its own."""
    script = tmp_path / "interrupted.py"
    script.write_text(
        "import os, signal, sys\n"
        "from apr.cli import main\n"
        "from apr.model import generate\n"
        "choose, calls = generate.choose, []\n"
        "def counted(*args):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 6:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return choose(*args)\n"
        "generate.choose = counted\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, script, "generate", file, "--ids", "70", "--max-tokens", "100", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGINT
    assert "interrupted" in done.stderr
    assert "Traceback" not in done.stderr
    result = json.loads(done.stdout)
    assert len(result["ids"]) == 5
    assert result["finish"] is None


def test_neither_the_compiler_nor_sympy_is_loaded(file):
    """They take longer than torch itself, and each command pays for it."""
    script = (
        "import sys\n"
        "from apr.cli import main\n"
        f"assert main(['generate', {str(file)!r}, '--ids', '70', '--max-tokens', '3']) == 0\n"
        "sys.exit(bool({'sympy', 'torch._dynamo'} & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def test_text_does_not_act_on_a_terminal(file, monkeypatch, capsys):
    from apr.cli import main

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("apr.data.text_stream.TextStream.push", lambda *_: "\x1b[2J\ta\n")
    assert main(["generate", str(file), "--ids", "70", "--max-tokens", "1"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[2J\ta\n" in out
