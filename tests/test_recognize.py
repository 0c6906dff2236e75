"""A path of another kind than a command wants: what it is and the command or flag that was meant."""

import json
import shutil
from functools import partial
from itertools import product

import numpy as np
import pytest
from tests.data.directories import TOKENIZER
from tests.data.token_writers import datatrove, dolma, llmc, megatron, nanogpt, npy

import apr
from apr.cli import main
from apr.data import ShardDir

_IDS = np.random.default_rng(0).zipf(1.3, 4000) % 512
DOCUMENTS = np.split(_IDS, [500, 900, 2000])
# Token files of other tools; those under the name of a shard are arrays of another type.
TOKENS = {
    "nanogpt/train.bin": nanogpt,
    "llmc/x_000001.bin": llmc,
    "ds/000_x.ds": datatrove,
    "megatron/x_document.bin": megatron,
    "olmo/part-0-00000.npy": dolma,
    "arrays/a.npy": npy,
    "wide/ids.bin": partial(nanogpt, dtype="<i8"),
    "plain/ids.bin": partial(nanogpt, dtype="<u4"),
    "short/shard-00000.bin": nanogpt,
    "long/shard-00000.bin": partial(nanogpt, dtype="<i8"),
}
MODEL = "aprender-0.72/qwen2_untied_f32.apr"


@pytest.fixture(autouse=True)
def place(tmp_path, data, monkeypatch):
    """A directory with a path of every kind, the current one."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data / "imported-0.72" / "hf_llama_untied", "transformers")
    for name in ("epoch-000.apr", "epoch-001.apr"):
        (tmp_path / "run" / "ckpt").mkdir(parents=True, exist_ok=True)
        shutil.copy(data / MODEL, tmp_path / "run" / "ckpt" / name)
    files = {
        "run/result.json": json.dumps({"best_checkpoint": "ckpt/epoch-000.apr"}),
        "run/config.yaml": "",
        "killed/config.yaml": "",
        "killed/ckpt/step-00000003.apr": "",
        "tokenizer/tokenizer.json": "{}",
        "shards/manifest.json": "{}",
        "shards/shard-00000.bin": "a" * 80,
        "adapter/adapter_config.json": "{}",
        "adapter/adapter_model.safetensors": "",
        "gguf/model.gguf": "",
        "texts/a.txt": "a",
        "datasets/dataset_info.json": "{}",
        "several/model.apr.index.json": "{}",
        "several/model-00001-of-00002.apr": "",
        "several/notes.txt": "a",
        "files/a.apr": "",
        "files/b.apr": "",
        "files/README.md": "",
        "docs.jsonl": '{"text": "a"}\n',
        "docs.jsonl.gz": "a" * 80,
        "docs.parquet": "PAR1",
        "notes.txt": "a",
        "config.json": "{}",
        "sizes.yaml": "architecture: llama",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "empty").mkdir()
    for name, write in TOKENS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, DOCUMENTS)
    return tmp_path


WHAT = {
    "transformers": "apr convert transformers transformers.apr",
    "run": "run/ckpt/epoch-000.apr",
    "killed": "killed/ckpt/step-00000003.apr",
    "run/result.json": "run/ckpt/epoch-000.apr",
    "shards": "--dataset",
    "shards/shard-00000.bin": "its directory: shards",
    "shards/manifest.json": "the directory: shards",
    "tokenizer": "--tokenizer",
    "adapter": "merge_and_unload",
    "gguf": "apr convert gguf/model.gguf",
    "texts": "apr tokenize encode --corpus texts",
    "datasets": "to_parquet",
    "docs.jsonl": "apr tokenize encode --corpus docs.jsonl",
    "docs.jsonl.gz": "apr tokenize encode --corpus docs.jsonl.gz",
    "notes.txt": "apr tokenize encode --corpus notes.txt",
    "config.json": "apr convert",
    "sizes.yaml": "--arch",
    "org/model-0.5B": "downloads nothing",
}
COMMANDS = {
    "pretrain --run-dir new --dataset {shards} --init {}": {"shards"},
    "evaluate {} --dataset {shards}": set(),
    "generate {} --prompt x": set(),
    "stamp {} a=1 -o new.apr": set(),
}


@pytest.mark.parametrize("path", WHAT)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_not_a_model_names_what_was_meant(capsys, command, path):
    words = [word.replace("{}", path).replace("{shards}", "shards") for word in command.split()]
    assert main(words) in {3, 4, 5}
    lines = [line for line in capsys.readouterr().err.splitlines() if f"error: {path}" in line]
    assert [line for line in lines if WHAT[path] in line], lines


@pytest.mark.parametrize("path", sorted(WHAT.keys() - {"transformers", "gguf", "adapter"}))
@pytest.mark.parametrize("command", ["inspect", "tensors", "convert"])
def test_commands_of_every_format_name_it_too(capsys, command, path):
    assert main([command, path, *(["new.apr"] if command == "convert" else [])]) in {3, 4}
    (line,) = capsys.readouterr().err.splitlines()
    assert WHAT[path] in line


@pytest.mark.parametrize("path", sorted(WHAT.keys() - {"shards", "shards/manifest.json"}))
@pytest.mark.parametrize(
    "command",
    [
        "pretrain --run-dir new --init m.apr --dataset",
        "evaluate m.apr --dataset",
        "tokenize decode",
        "repair-manifest",
    ],
)
def test_what_is_not_a_shard_directory_names_what_was_meant(place, capsys, command, path):
    shutil.copy(place / "run" / "ckpt" / "epoch-000.apr", place / "m.apr")
    assert main([*command.split(), path]) in {3, 5}
    lines = [line for line in capsys.readouterr().err.splitlines() if f"error: {path}" in line]
    assert [line for line in lines if WHAT[path] in line], lines


@pytest.mark.parametrize("path", ["run", "shards", "docs.jsonl", "shards/shard-00000.bin", "org/model-0.5B"])
def test_what_is_not_a_tokenizer_names_what_was_meant(capsys, path):
    assert main(["tokenize", "encode", "--corpus", "texts", "--tokenizer", path, "--output", "new"]) in {3, 4}
    (line,) = capsys.readouterr().err.splitlines()
    assert WHAT[path] in line


def test_the_directory_of_one_model_is_that_model(place, data):
    (place / "one").mkdir()
    shutil.copy(data / MODEL, place / "one" / "m.apr")
    apr.stamp(place / "one", {"a": 1}, place / "new.apr")
    assert apr.load(place / "new.apr").metadata["a"] == 1


@pytest.mark.parametrize("name", ["m.apr", "x/y/z", "runs/first.apr", "two words/x", "a/"])
def test_other_missing_paths_are_only_missing(capsys, name):
    assert main(["inspect", name]) == 3
    assert capsys.readouterr().err.splitlines()[0].endswith(": No such file or directory")


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("several", "a model in several .apr files"),
        ("several/model.apr.index.json", "a model in several .apr files"),
        ("files", "one of them"),
    ],
)
@pytest.mark.parametrize("command", ["stamp {} a=1 -o new.apr", "repair-manifest {}"])
def test_several_apr_files_are_not_texts(capsys, command, path, what):
    assert main(command.format(path).split()) in {3, 4, 5}
    (line,) = capsys.readouterr().err.splitlines()
    assert path in line
    assert what in line
    assert "tokenize" not in line


@pytest.mark.parametrize("name", ["new.apr", "new.gguf"])
def test_a_path_below_a_file_is_not_said_to_be_something(capsys, name):
    assert main(["convert", "run/ckpt/epoch-000.apr", f"notes.txt/{name}"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(": Not a directory")


TOKEN_PATHS = sorted({*TOKENS, *(name.partition("/")[0] for name in TOKENS), "megatron/x_document.idx"})


OF_MODELS = [
    "inspect {}",
    "convert {} x.apr",
    "verify {}",
    "pretrain --run-dir new --dataset shards --init {}",
]
OF_DATA = [
    "pretrain --run-dir new --init m.apr --dataset {}",
    "evaluate m.apr --dataset {}",
    "tokenize encode --corpus {} --tokenizer T --output new",
    "tokenize train --corpus {} --vocab-size 300 --output new",
    "tokenize merge {} --output new",
]


@pytest.mark.parametrize(
    ("command", "path"),
    # A single array may be a tensor.
    [*product(OF_DATA, TOKEN_PATHS), *product(OF_MODELS, sorted({*TOKEN_PATHS} - {"arrays/a.npy"}))],
)
def test_token_files_of_other_tools_name_the_import(place, capsys, command, path):
    shutil.copy(place / "run" / "ckpt" / "epoch-000.apr", place / "m.apr")
    words = command.replace("T", str(TOKENIZER)).replace("{}", path).split()
    assert main(words) in {2, 3, 4, 5}
    printed = capsys.readouterr()
    lines = [line for line in (printed.err + printed.out).splitlines() if path in line]
    assert [line for line in lines if "apr tokenize import" in line], lines
    assert not [line for line in lines if "texts; encode" in line]


@pytest.mark.parametrize("path", [path for path in TOKEN_PATHS if "/" not in path])
def test_a_directory_of_token_files_is_no_shard_directory(capsys, path):
    flags = ["--verify"] if path in ("short", "long") else []
    assert main(["repair-manifest", path, *flags]) == 5
    assert "apr tokenize import" in "".join(capsys.readouterr())


@pytest.mark.parametrize("path", TOKEN_PATHS)
def test_what_the_error_names_imports_them(path, tmp_path):
    assert main(["tokenize", "import", path, "imported", "--tokenizer", str(TOKENIZER)]) == 0
    shards = ShardDir(tmp_path / "imported")
    assert shards.read(0, len(_IDS)).tolist() == _IDS.tolist()


def test_token_files_below_a_corpus_are_left_out_and_named(place, capsys):
    corpus = place / "mixed"
    for name in ("nanogpt", "olmo", "wide"):
        shutil.copytree(place / name, corpus / name)
    (corpus / "a.txt").write_text("a text of its own")
    (corpus / "shard-00000").mkdir()
    np.arange(90, dtype="<u4").tofile(corpus / "shard-00000" / "shard-00000.bin")
    encode = ["tokenize", "encode", "--corpus", "mixed", "--tokenizer", str(TOKENIZER), "--output"]
    assert main([*encode, "new", "--pattern", "*.bin", "*.npy", "*.txt"]) == 0
    error = capsys.readouterr().err
    assert "nanogpt/train.bin: 16-bit integers" in error
    assert "shard-00000.bin: a token shard" in error
    assert json.loads((place / "new" / "manifest.json").read_text())["total_documents"] == 1


@pytest.mark.parametrize(
    "command", [f"encode --tokenizer {TOKENIZER}", "train --vocab-size 300"], ids=["encode", "train"]
)
def test_integers_under_any_name_are_not_text(place, capsys, command):
    # Small integers are valid UTF-8.
    np.arange(100, dtype="<i8").tofile(place / "ids.dat")
    assert main(["tokenize", *command.split(), "--corpus", "ids.dat", "--output", "new"]) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert "ids.dat: " in line
    assert "apr tokenize import" in line
    assert not list(place.glob("new/*.bin"))
    assert not (place / "new" / "tokenizer.json").exists()


@pytest.mark.parametrize("name", ["ids.txt", "ids.json", "ids.csv"])
@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<i8"])
@pytest.mark.parametrize("command", ["inspect {}", *OF_DATA])
@pytest.mark.parametrize("below", [False, True])
def test_ids_under_the_name_of_a_text_are_not_text(place, capsys, command, below, dtype, name):
    shutil.copy(place / "run" / "ckpt" / "epoch-000.apr", place / "m.apr")
    (place / "ids").mkdir()
    nanogpt(place / "ids" / name, [100 + np.arange(300)], dtype)
    path = "ids" if below else f"ids/{name}"
    words = command.replace("T", str(TOKENIZER)).replace("{}", path).split()
    assert main(words) in {2, 3, 4, 5}
    printed = capsys.readouterr()
    lines = [line for line in (printed.err + printed.out).splitlines() if path in line]
    assert [line for line in lines if "apr tokenize import" in line], lines
    assert not [line for line in lines if "texts; encode" in line]
    assert main(["tokenize", "import", "ids", "imported", "--tokenizer", str(TOKENIZER)]) == 5
    assert f"ids/{name}" in capsys.readouterr().err
    assert main(["tokenize", "import", f"ids/{name}", "imported", "--tokenizer", str(TOKENIZER)]) == 0
    assert ShardDir(place / "imported").read(0, 300).tolist() == list(range(100, 400))


@pytest.mark.parametrize(
    "text", ["é", "日本語の文章。" * 9, "a" + "é" * 40, "\ufeffa", "ab" + "𠀀" * 40], ids=range(5)
)
def test_texts_of_any_script_are_texts(place, capsys, text):
    (place / "notes.txt").write_text(text, encoding="utf-8")
    assert main(["inspect", "notes.txt"]) == 4
    assert "apr tokenize encode --corpus notes.txt" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["notes.txt.gz", "list.csv.zst"])
def test_compressed_files_that_are_not_json_are_not_said_to_be_encoded(place, capsys, name):
    (place / "one").mkdir()
    (place / "one" / name).write_bytes(b"\x1f\x8b\x08" + bytes(90))
    assert main(["repair-manifest", "one"]) == 5
    assert "apr tokenize encode" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.bin", "text.bin"])
def test_other_files_that_end_in_bin_are_no_tokens(place, capsys, name):
    content = b"The sea is wide.\n" * 20 if name == "text.bin" else b"PK\3\4" + bytes(range(256))
    (place / name).write_bytes(content)
    assert main(["inspect", name]) == 4
    assert "apr tokenize import" not in capsys.readouterr().err
