"""Parts of an encoding, joined: the bytes of a single run, or a refusal that names what is wrong."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from tests.killing import KILLED, disk_full

from apr.cli import main
from apr.data import ShardDir
from apr.data.encode import encode_corpus
from apr.data.encode_options import EncodeOptions
from apr.data.merge import merge_parts
from apr.errors import RefusedError, UsageError

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "imported-0.72" / "hf_llama_tied"
VOLATILE = ("elapsed_seconds", "num_workers")
LINES = [f"def f{i}(x):\n    return x * {i}  # {'wörd ' * (i % 7)}\n" if i % 5 else "" for i in range(90)]


@pytest.fixture
def corpus(tmp_path):
    """Files of every format; one of them is larger than the others together."""
    root = tmp_path / "corpus"
    root.mkdir()
    for n in range(12):
        (root / f"a{n:02}.py").write_text(LINES[n] * 3)
    lines = "".join(json.dumps({"content": line}) + "\n" for line in LINES)
    (root / "big.jsonl").write_text(lines * 8)
    (root / "c.jsonl.gz").write_bytes(gzip.compress((lines + "nonsense\n").encode(), mtime=0))
    parquet.write_table(pa.table({"content": [*LINES, None]}), root / "d.parquet", row_group_size=20)
    (root / "z.txt").write_text("")
    return root


@pytest.fixture
def encode(corpus, tmp_path):
    def run(name, part=None, **changes):
        given = {"corpus": (str(corpus),), "tokenizer": TOKENIZER, "shard_tokens": 700} | changes
        encode_corpus(EncodeOptions(output=tmp_path / name, part=part, **given))
        return tmp_path / name

    return run


@pytest.fixture
def parts(encode):
    return [encode(f"part-{n}", f"{n}/3") for n in (1, 2, 3)]


def snapshot(directory):
    """All bytes of a directory but those of the times."""
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    lines = files["manifest.json"].splitlines()
    files["manifest.json"] = [
        line for line in lines if not any(f'"{key}"'.encode() in line for key in VOLATILE)
    ]
    return files


@pytest.mark.parametrize(
    ("policy", "of"), [*product(("none", "between", "after"), (1, 3, 7)), ("between", 60)]
)
def test_any_number_of_parts_gives_the_bytes_of_a_single_run(policy, of, encode, tmp_path):
    whole = encode("whole", eos_policy=policy)
    made = [encode(f"part-{n}", f"{n}/{of}", eos_policy=policy) for n in range(1, of + 1)]
    # In any order: a shell sorts part-10 before part-2.
    merge_parts(sorted(made), tmp_path / "merged")
    assert snapshot(tmp_path / "merged") == snapshot(whole)
    assert len(list(whole.glob("*.bin"))) > 20
    ShardDir(tmp_path / "merged")


@pytest.mark.parametrize("policy", ["none", "between"])
def test_parts_without_documents_and_empty_documents_are_joined(policy, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(
        "".join(json.dumps({"content": text}) + "\n" for text in ["", "", "abc", "", "x", "", ""])
    )
    made = []
    for n in [None, *range(1, 12)]:
        output = tmp_path / f"part-{n}"
        encode_corpus(EncodeOptions((str(path),), TOKENIZER, output, eos_policy=policy, part=n and f"{n}/11"))
        made.append(output)
    merge_parts(made[1:], tmp_path / "merged")
    assert snapshot(tmp_path / "merged") == snapshot(made[0])


def test_a_part_is_not_trained_on(parts):
    with pytest.raises(RefusedError, match=r"part 2/3 .*apr tokenize merge"):
        ShardDir(parts[1])


def edit(directory, **changes):
    path = directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip(path):
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)


def without_part(directory):
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["part"]
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("act", "match"),
    [
        (lambda parts: parts.pop(1), "missing parts: 2/3"),
        (lambda parts: parts.__delitem__(slice(1)), "missing parts: 1/3"),
        (lambda parts: parts.append(parts[0]), r"part-1: part 1/3 is also .*part-1"),
        (lambda parts: edit(parts[1], part="2/4"), r"part-2: part 2/4, but .*part-1 is part 1/3"),
        (
            lambda parts: edit(parts[2], tokenizer_sha256="0", tokenizer_identity="0"),
            r"part-3: encoded with .*hf_llama_tied, but .*part-1",
        ),
        (lambda parts: edit(parts[2], eos_policy="after"), r"part-3: eos_policy differs"),
        (lambda parts: edit(parts[2], input_files=[]), r"part-3: input_files differs"),
        (lambda parts: edit(parts[2], input_bytes=1), r"part-3: input_bytes differs"),
        (lambda parts: edit(parts[1], complete=False), r"part-2: part 2/3 is incomplete; .*--resume"),
        (lambda parts: without_part(parts[1]), r"part-2: not a part"),
        (lambda parts: flip(parts[1] / "shard-00001.bin"), r"part-2/shard-00001\.bin: changed"),
        (lambda parts: max(parts[1].glob("*.bin")).unlink(), r"part-2/manifest\.json: does not match"),
        (lambda parts: (parts[1] / "shard-00001.lengths").unlink(), r"part-2/shard-00001\.lengths: missing"),
        (
            lambda parts: flip(parts[1] / "shard-00001.lengths"),
            r"part-2/shard-00001\.lengths: not the lengths",
        ),
        (
            lambda parts: os.truncate(parts[1] / "shard-00001.lengths", 9),
            r"part-2/shard-00001\.lengths: not the lengths",
        ),
    ],
)
def test_parts_that_are_not_all_of_one_encoding_are_refused_by_name(act, match, parts, tmp_path):
    act(parts)
    with pytest.raises(RefusedError, match=match):
        merge_parts(parts, tmp_path / "merged")
    manifest = tmp_path / "merged" / "manifest.json"
    assert not manifest.exists() or json.loads(manifest.read_text())["complete"] is False


def test_parts_of_a_corpus_that_changed_in_between_are_refused(corpus, encode, parts, tmp_path):
    # Of the same size: only its time tells.
    path = corpus / "a03.py"
    path.write_text(path.read_text().replace("return", "RETURN"))
    shutil.rmtree(parts[2])
    parts[2] = encode("part-3", "3/3")
    with pytest.raises(RefusedError, match=r"part-3: corpus_files .*times"):
        merge_parts(parts, tmp_path / "merged")


def test_a_part_is_resumed_only_as_the_same_part(encode, parts):
    with pytest.raises(RefusedError, match="part was '1/3' and is now '2/3'"):
        encode("part-1", "2/3", resume=True)
    before = snapshot(parts[0])
    encode("part-1", "1/3", resume=True)
    assert snapshot(parts[0]) == before


def run_killed(step, *arguments):
    command = [sys.executable, "-c", KILLED, str(step), "tokenize", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False).returncode


@pytest.mark.parametrize("step", [1, 2, 9, 25, 60])
def test_a_killed_part_loses_its_open_shard_only(step, corpus, encode, parts, tmp_path):
    flags = ["--corpus", corpus, "--tokenizer", TOKENIZER, "--shard-tokens", 700, "--part", "2/3"]
    output = tmp_path / "killed"
    assert run_killed(step, "encode", *flags, "--output", output) == -signal.SIGKILL
    # What the same worker does when it is started again.
    again = ["--resume"] if list(output.glob("*.bin")) else []
    assert main(["tokenize", "encode", *map(str, flags), "--output", str(output), *again]) == 0
    assert snapshot(output) == snapshot(parts[1])
    merge_parts([parts[0], output, parts[2]], tmp_path / "merged")
    assert snapshot(tmp_path / "merged") == snapshot(encode("whole"))


@pytest.mark.parametrize("step", [1, 2, 5, 12, 40, 77])
def test_a_killed_merge_is_resumed(step, encode, parts, tmp_path):
    output = tmp_path / "merged"
    assert run_killed(step, "merge", *parts, "--output", output) == -signal.SIGKILL
    again = ["--resume"] if list(output.glob("*.bin")) else []
    assert main(["tokenize", "merge", *map(str, parts), "--output", str(output), *again]) == 0
    assert snapshot(output) == snapshot(encode("whole"))


def test_a_full_disk_keeps_the_parts_and_the_merge_can_be_resumed(encode, parts, tmp_path):
    def fill(written, _total):
        if written > 10_000:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        merge_parts(parts, tmp_path / "merged", on_progress=fill)
    kept = json.loads((tmp_path / "merged" / "manifest.json").read_text())
    assert kept["complete"] is False
    assert kept["shard_count"] > 0
    with pytest.raises(RefusedError, match="--resume"):
        merge_parts(parts, tmp_path / "merged")
    merge_parts(parts, tmp_path / "merged", resume=True)
    assert snapshot(tmp_path / "merged") == snapshot(encode("whole"))


def test_a_disk_without_room_is_an_error_that_names_the_file(parts, tmp_path):
    with disk_full(), pytest.raises(OSError, match="merged"):
        merge_parts(parts, tmp_path / "merged")


def test_a_merge_of_other_parts_or_a_changed_shard_is_not_resumed(encode, parts, tmp_path):
    def stop(written, _total):
        if written > 10_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_parts(parts, tmp_path / "merged", on_progress=stop)
    others = [encode(f"other-{n}", f"{n}/2", eos_policy="after") for n in (1, 2)]
    with pytest.raises(RefusedError, match="cannot resume"):
        merge_parts(others, tmp_path / "merged", resume=True)
    with pytest.raises(RefusedError, match="cannot resume"):
        encode("merged", resume=True)
    flip(tmp_path / "merged" / "shard-00000.bin")
    with pytest.raises(RefusedError, match=r"shard-00000\.bin"):
        merge_parts(parts, tmp_path / "merged", resume=True)
    merge_parts(parts, tmp_path / "merged", force=True)
    assert snapshot(tmp_path / "merged") == snapshot(encode("whole"))
    assert merge_parts(parts, tmp_path / "merged", resume=True).complete_before


def test_wrong_use_exits_with_2(parts, tmp_path, capsys):
    with pytest.raises(UsageError, match="one of the parts"):
        merge_parts(parts, parts[0], force=True)
    assert (
        main(["tokenize", "merge", *map(str, parts), "--output", str(tmp_path), "--resume", "--force"]) == 2
    )
    flags = ["--tokenizer", str(TOKENIZER), "--output", str(tmp_path / "x")]
    assert main(["tokenize", "encode", "--corpus", "-", *flags, "--part", "1/2"]) == 2
    assert main(["tokenize", "encode", "--corpus", str(tmp_path), *flags, "--part", "3/2"]) == 2
    assert "--part" in capsys.readouterr().err


def test_the_commands_print_a_summary(parts, tmp_path, capsys):
    assert main(["tokenize", "merge", *map(str, parts), "--output", str(tmp_path / "m")]) == 0
    assert "from 3 parts" in capsys.readouterr().out
    assert main(["tokenize", "merge", *map(str, parts), "--output", str(tmp_path / "m"), "--resume"]) == 0
    assert "already complete" in capsys.readouterr().out
    assert main(["tokenize", "merge", *map(str, parts), "--output", str(tmp_path / "n"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"] is True


def test_the_slurm_script_encodes_and_joins_parts(corpus, tmp_path):
    script = Path(__file__).parents[2] / "examples" / "encode-slurm.sh"
    # The command as it is installed, whatever is on the path.
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "apr"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m apr "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

    def run(*arguments, **variables):
        arguments = [str(corpus), str(TOKENIZER), str(tmp_path / "shards"), *arguments]
        subprocess.run([script, *arguments], env=environment | variables, check=True, capture_output=True)

    for task in ("1", "2"):
        run(SLURM_ARRAY_TASK_ID=task, SLURM_ARRAY_TASK_COUNT="2", SLURM_CPUS_PER_TASK="1")
    # Once more, alone, as after a kill.
    run(SLURM_ARRAY_TASK_ID="2", SLURM_ARRAY_TASK_COUNT="1", PARTS="2")
    run("merge")
    # The same again, as after a kill.
    run("merge")
    encode_corpus(EncodeOptions((str(corpus),), TOKENIZER, tmp_path / "whole"))
    assert snapshot(tmp_path / "shards") == snapshot(tmp_path / "whole")
