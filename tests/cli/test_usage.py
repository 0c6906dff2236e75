"""Mistakes on the command line: a line that names what was typed and what was probably meant; exit code 2."""

from importlib import import_module
from typing import get_args

import pytest

from apr import meant
from apr.cli import main
from apr.cli._usage import _Grammar, _name
from apr.cli.main import COMMANDS, SUBCOMMANDS

# Words of tyro and of the Python functions that it calls.
INTERNALS = (
    "tyro",
    "invalid literal",
    "could not convert",
    "Parsing error",
    "literal",
    "╭",
    "float(",
    "int(",
)
PRETRAIN = ["pretrain", "--dataset", "d", "--run-dir", "r"]
ENCODE = ["tokenize", "encode", "--corpus", "c", "--tokenizer", "t", "--output", "o"]
EVALUATE = ["evaluate", "m.apr", "--dataset", "d"]


def refused(capsys, *words):
    """Run a command that is typed wrongly, and return its one line of error."""
    assert main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert not out
    (line,) = err.splitlines()
    assert not [word for word in INTERNALS if word in line]
    return line


def classes():
    """Yield the words and the dataclass of every command and subcommand."""
    for command, (module, _) in COMMANDS.items():
        cls = import_module(module).Command
        arms = {arm.name: arm_class for arm_class, arm in map(get_args, get_args(cls))}
        yield from ([command, name] for name in arms) if arms else [[command]]


def grammar(words):
    cls = import_module(COMMANDS[words[0]][0]).Command
    arms = {arm.name: arm_class for arm_class, arm in map(get_args, get_args(cls))}
    result = _Grammar()
    result.add(arms[words[1]] if arms else cls, None)
    return result


@pytest.mark.parametrize(
    ("typed", "suggested"),
    [
        (["train"], "apr pretrain"),
        (["train", "--lr", "3"], "apr pretrain"),
        (["finetune"], "apr pretrain"),
        (["eval", "m.apr"], "apr evaluate"),
        (["EVAL"], "apr evaluate"),
        (["encode"], "apr tokenize encode"),
        (["encdoe"], "apr tokenize encode"),
        (["lint"], "apr contracts lint"),
        (["export"], "apr convert"),
        (["info"], "apr inspect"),
        (["chat"], "apr generate"),
        (["version"], "apr --version"),
        (["help", "trian"], "apr pretrain"),
        (["tokenize", "run"], "encode"),
        (["contracts", "verify"], "check"),
        (["--json", "inspect", "m.apr"], "apr inspect --json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_other_names_of_commands_name_the_command(capsys, typed, suggested):
    assert suggested in refused(capsys, *typed)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["help"], []),
        (["help", "pretrain"], ["pretrain"]),
        (["help", "tokenize"], ["tokenize"]),
        (["help", "tokenize", "encode"], ["tokenize", "encode"]),
        (["tokenize", "help"], ["tokenize"]),
        (["contracts", "help", "check"], ["contracts", "check"]),
    ],
    ids=" ".join,
)
def test_help_is_a_command_too(capsys, typed, words):
    assert main(typed) == 0
    by_word = capsys.readouterr().out
    assert main([*words, "--help"]) == 0
    assert capsys.readouterr().out == by_word


@pytest.mark.parametrize("command", SUBCOMMANDS)
def test_a_command_of_commands_lists_them(capsys, command):
    for words in ([command], [command, "--json"], [command, "xyzzy"]):
        line = refused(capsys, *words)
        assert all(name in line for name in SUBCOMMANDS[command])


@pytest.mark.parametrize(
    ("command", "typed", "meant_flag"),
    [
        ("pretrain", "--learning-rate", "--lr"),
        ("pretrain", "--learning_rate", "--lr"),
        ("pretrain", "--data", "--dataset"),
        ("pretrain", "--epochs", "--num-steps"),
        ("pretrain", "--num_train_epochs", "--num-steps"),
        ("pretrain", "--max-steps", "--num-steps"),
        ("pretrain", "--num-iterations", "--num-steps"),
        ("pretrain", "--model", "--init"),
        ("pretrain", "--model_name_or_path", "--init"),
        ("pretrain", "--output", "--run-dir"),
        ("pretrain", "--out_dir", "--run-dir"),
        ("pretrain", "--batch", "--batch-size"),
        ("pretrain", "--per_device_train_batch_size", "--batch-size"),
        ("pretrain", "--device-batch-size", "--batch-size"),
        ("pretrain", "--total-batch-size", "--grad-accum"),
        ("pretrain", "--gradient_accumulation_steps", "--grad-accum"),
        ("pretrain", "--ctx", "--seq-length"),
        ("pretrain", "--block_size", "--seq-length"),
        ("pretrain", "--training.seq_len", "--seq-length"),
        ("pretrain", "--optimizer.lr", "--lr"),
        ("pretrain", "--warmup_ratio", "--warmup-steps"),
        ("pretrain", "--max_grad_norm", "--grad-clip"),
        ("pretrain", "--eval_steps", "--eval-every"),
        ("pretrain", "--save_steps", "--save-every"),
        ("pretrain", "--save_total_limit", "--keep"),
        ("pretrain", "--bf16", "--precision"),
        ("pretrain", "--resume_from_checkpoint", "--resume"),
        ("pretrain", "--report_to", "--tensorboard"),
        ("pretrain", "--val", "--val-dataset"),
        ("pretrain", "-lr", "--lr"),
        ("pretrain", "-o", "--run-dir"),
        ("pretrain", "--LR", "--lr"),
        ("evaluate", "--model", "FILE"),
        ("evaluate", "--data", "--dataset"),
        ("evaluate", "--ctx", "--seq-length"),
        ("generate", "--model", "FILE"),
        ("generate", "-m", "FILE"),
        ("generate", "--max_new_tokens", "--max-tokens"),
        ("generate", "--temp", "--temperature"),
        ("generate", "--text", "--prompt"),
        ("convert", "--outfile", "TARGET"),
        ("convert", "--outtype", "--dtype"),
        ("convert", "--input", "SOURCE"),
        ("init", "--preset-name", "--preset"),
        ("init", "--output-dir", "--output"),
        ("tokenize encode", "--data", "--corpus"),
        ("tokenize encode", "--num_proc", "--workers"),
        ("tokenize encode", "--text_column", "--content-field"),
        ("tokenize train", "--vocab", "--vocab-size"),
        ("contracts check", "--run", "--run-dir"),
        ("repair-manifest", "--data", "DIRECTORY"),
        ("diff", "--tolerance", "--atol"),
    ],
)
@pytest.mark.parametrize("form", ["apart", "equals"])
def test_other_tools_names_of_flags_name_the_flag(capsys, command, typed, meant_flag, form):
    line = refused(capsys, *command.split(), *([f"{typed}=7"] if form == "equals" else [typed, "7"]))
    assert line.startswith(f"apr {command}: error: unknown option {typed};")
    assert meant_flag in line.partition("did you mean")[2].replace("?", " ").split()


def test_every_name_of_the_table_is_one_that_a_command_has():
    grammars = [grammar(words) for words in classes()]
    known = {flag for g in grammars for flag in g.flags} | {_name(o) for g in grammars for o in g.arguments}
    commands = {*COMMANDS, *(" ".join(words) for words in classes()), *(words[-1] for words in classes())}
    assert meant._FLAGS.keys() - known == set()
    assert meant._NOTES.keys() <= known
    assert meant.COMMANDS.keys() - commands == {"--version", "--help"}
    # A name that exists is never taken for another one.
    for g in grammars:
        assert all(meant.meant_flags(flag, g.flags)[0] == flag for flag in g.flags if flag.startswith("--"))


def test_the_listed_subcommands_exist():
    for command, names in SUBCOMMANDS.items():
        assert set(names) <= {words[1] for words in classes() if words[0] == command}


@pytest.mark.parametrize(
    ("words", "flag", "rule"),
    [
        ([*PRETRAIN, "--lr=abc"], "--lr abc", "not a number"),
        ([*PRETRAIN, "--lr", "1,5"], "--lr 1,5", "not a number"),
        ([*PRETRAIN, "--lr", ""], "--lr ", "not a number"),
        ([*PRETRAIN, "--num-steps", "ten"], "--num-steps ten", "not a whole number"),
        ([*PRETRAIN, "--steps", "ten"], "--steps ten", "not a whole number"),
        ([*PRETRAIN, "--num-steps", "1e3"], "--num-steps 1e3", "write 1000"),
        ([*PRETRAIN, "--num-steps=10.5"], "--num-steps 10.5", "not a whole number"),
        ([*PRETRAIN, "--seed", "0x10"], "--seed 0x10", "not a whole number"),
        ([*PRETRAIN, "--mode", "finetun"], "--mode finetun", "did you mean finetune?"),
        ([*PRETRAIN, "--precision", "fp8"], "--precision fp8", "bf16, fp32"),
        ([*PRETRAIN, "--shuffle=false"], "--shuffle false", "--no-shuffle"),
        ([*PRETRAIN, "--shuffle", "False"], "--shuffle False", "--no-shuffle"),
        ([*PRETRAIN, "--tensorboard", "yes"], "--tensorboard yes", "no value"),
        ([*PRETRAIN, "--tensorboard", "no"], "--tensorboard no", "leave it out"),
        ([*PRETRAIN, "--no-shuffle", "1"], "--no-shuffle 1", "no value"),
        ([*PRETRAIN, "--lr"], "--lr", "missing"),
        ([*PRETRAIN, "--lr", "--keep", "3"], "--lr", "missing"),
        ([*PRETRAIN, "--config"], "--config", "missing"),
        ([*PRETRAIN, "--run-dir"], "--run-dir", "missing"),
        ([*PRETRAIN, "--sample-prompt", "-x"], "--sample-prompt", "--sample-prompt=-x"),
        ([*PRETRAIN, "model.apr"], "'model.apr'", "unexpected"),
        ([*EVALUATE, "--batch-size", "x"], "--batch-size x", "not a whole number"),
        ([*EVALUATE, "other.apr"], "'other.apr'", "unexpected"),
        (["evaluate", "m.apr"], "--dataset", "must be given"),
        (["evaluate", "--dataset", "d"], "FILE", "must be given"),
        (["generate"], "FILE", "must be given"),
        (["generate", "m.apr", "--ids", "1", "x"], "--ids x", "not a whole number"),
        (["generate", "m.apr", "--temperature", "hot"], "--temperature hot", "not a number"),
        (["generate", "m.apr", "--top-p", "2"], "--top-p", "at most 1"),
        (["generate", "m.apr", "--ids", "1", "--prompt", "x"], "--ids", "--prompt"),
        (["convert", "a"], "TARGET", "must be given"),
        (["convert", "a", "b", "c"], "'c'", "unexpected"),
        (["convert", "a", "b", "--dtype", "f17"], "--dtype f17", "did you mean f16?"),
        (["init"], "--arch and --out", "must be given"),
        (["init", "--arch", "qwen2-4m", "-o", "x", "--vocab-size", "many"], "--vocab-size many", "whole"),
        (["init", "--arch", "qwen2-4m", "-o"], "-o", "missing"),
        (["tokenize", "train"], "--corpus, --vocab-size and --output", "must be given"),
        ([*ENCODE, "--workers", "two"], "--workers two", "not a whole number"),
        ([*ENCODE, "--part", "3"], "--part 3", "I/N"),
        ([*ENCODE, "--eos-policy", "never"], "--eos-policy never", "between"),
        ([*ENCODE, "--corpus"], "--corpus", "missing"),
        (["tokenize", "merge", "--output", "o"], "PART", "must be given"),
        (["tokenize", "decode", "d", "--count", "x"], "--count x", "not a whole number"),
        (["diff", "a"], "B", "must be given"),
        (["diff", "a", "b", "--atol", "x"], "--atol x", "not a number"),
        (["stamp", "m.apr", "key", "-o", "o"], "key", "KEY=VALUE"),
        (["contracts", "check", "c"], "--run-dir", "must be given"),
        (["repair-manifest", "a", "--verify=true"], "--verify true", "no value"),
        (["inspect", "a", "--quick", "true"], "--quick true", "no value"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_flag_and_its_rule(capsys, words, flag, rule):
    line = refused(capsys, *words)
    assert flag in line
    assert rule in line


@pytest.mark.parametrize("words", list(classes()), ids=" ".join)
def test_every_flag_refuses_a_value_of_another_type(capsys, words):
    """No flag of any command shows a traceback or the parser's own words."""
    parsed = grammar(words)
    needed = [word for o in parsed.required if o.flag in parsed.flags for word in (o.flag, "1")]
    files = ["a"] * len([o for o in parsed.required if o.flag not in parsed.flags])
    for flag, option in parsed.flags.items():
        if option.type in (int, float) or "Literal" in str(option.type):
            assert f"{flag} zebra: not " in refused(capsys, *words, *files, *needed, flag, "zebra")
        elif option.type is bool:
            assert f"{flag} zebra" in refused(capsys, *words, *files, *needed, f"{flag}=zebra")
        if option.type is not bool and "tuple" not in str(option.type):
            assert f"{flag}: the value is missing" in refused(capsys, *words, *files, *needed, flag)


def test_each_mistake_has_its_line(capsys):
    assert main([*PRETRAIN, "--epochs", "3", "--learning-rate", "1e-4", "--keep", "x"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[2].split(";")[0] for line in lines] == [
        "unknown option --epochs", "unknown option --learning-rate", "--keep x"
    ]  # fmt: skip
    assert "optimizer steps" in lines[0]


def test_yaml_keys_of_other_tools_name_the_option(tmp_path, capsys):
    path = tmp_path / "o.yaml"
    path.write_text("learning_rate: 1\nmax-steps: 3\ndata: x\n")
    assert main(["pretrain", "--config", str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition("did you mean ")[2] for line in lines] == ["'lr'?", "'num_steps'?", "'dataset'?"]


def test_options_with_a_default_in_yaml_are_not_missing(tmp_path, capsys):
    path = tmp_path / "o.yaml"
    path.write_text("dataset: d\n")
    assert main(["pretrain", "--config", str(path)]) == 2
    assert "error: --run-dir must be given" in capsys.readouterr().err
