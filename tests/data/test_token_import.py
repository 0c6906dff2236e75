"""Importing token files: the same ids in shards, ends of documents, kills, signals and changed files."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from tests.data.directories import TOKENIZER, read_json
from tests.data.token_writers import datatrove, dolma, llmc, megatron, nanogpt, npy
from tests.killing import KILLED, disk_full

from apr.cli import main
from apr.data import ShardDir, repair
from apr.data.token_import import ImportOptions, import_tokens
from apr.errors import FormatError, RefusedError, UsageError

EOS = 0
VOLATILE = ("elapsed_seconds",)
_RANDOM = np.random.default_rng(0)
# Text-like ids without the end of text, of very different lengths.
BARE = [(_RANDOM.zipf(1.3, n) % 511 + 1).tolist() for n in _RANDOM.integers(1, 400, 60)]
DOCUMENTS = [[*ids, EOS] for ids in BARE]


def flat(documents):
    return [id_ for ids in documents for id_ in ids]


def run(path, output, **changes):
    sources = path if isinstance(path, tuple) else (path,)
    return import_tokens(ImportOptions(sources=sources, output=output, tokenizer=TOKENIZER, **changes))


def stream(directory):
    shards = ShardDir(directory)
    return shards.read(0, shards.total_tokens).tolist()


def snapshot(directory):
    manifest = read_json(directory)
    files = {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "manifest.json"}
    return files, [(key, value) for key, value in manifest.items() if key not in VOLATILE]


WRITERS = {
    "nanogpt": (nanogpt, "a.bin", False),
    "llm.c": (llmc, "a.bin", False),
    "datatrove": (datatrove, "a.ds", True),
    "megatron": (megatron, "a.bin", True),
    "dolma": (dolma, "a.npy", True),
    "npy": (npy, "a.npy", False),
}


@pytest.mark.parametrize("format_", WRITERS)
@pytest.mark.parametrize("shard_tokens", [700, 10_000_000])
def test_the_shards_have_the_ids_of_the_file(format_, shard_tokens, tmp_path):
    write, name, _ = WRITERS[format_]
    path = write(tmp_path / name, DOCUMENTS)
    report = run(path, tmp_path / "shards", shard_tokens=shard_tokens)
    assert stream(tmp_path / "shards") == flat(DOCUMENTS)
    manifest = report.manifest
    assert (manifest["total_documents"], manifest["eos_token_count"]) == (len(DOCUMENTS), len(DOCUMENTS))
    assert (manifest["eos_policy"], manifest["input_format"]) == ("after", format_)
    assert manifest["imported"]["format"] == format_
    for row in manifest["imported"]["files"]:
        content = (tmp_path / row["path"]).read_bytes()
        assert (row["size"], row["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    # Each shard ends after the document that fills it.
    for shard in ShardDir(tmp_path / "shards").shards:
        assert np.fromfile(shard.path, "<u4")[-1] == EOS
        assert shard.tokens < shard_tokens + 401
    # And everything that reads shards takes them.
    assert repair(tmp_path / "shards", tokenizer=TOKENIZER, verify=True).ok


def test_several_files_are_one_stream_in_their_order(tmp_path):
    first = datatrove(tmp_path / "b.ds", DOCUMENTS[:20])
    second = datatrove(tmp_path / "a.ds", DOCUMENTS[20:], item=4)
    run((first, second), tmp_path / "as-given", shard_tokens=900)
    assert stream(tmp_path / "as-given") == flat(DOCUMENTS)
    source = tmp_path / "all"
    source.mkdir()
    for file in tmp_path.glob("?.ds*"):
        shutil.copy(file, source)
    run(source, tmp_path / "sorted", shard_tokens=900)
    assert stream(tmp_path / "sorted") == flat(DOCUMENTS[20:] + DOCUMENTS[:20])


def test_files_of_two_formats_are_refused(tmp_path):
    first, second = datatrove(tmp_path / "b.ds", DOCUMENTS), nanogpt(tmp_path / "a.bin", DOCUMENTS)
    with pytest.raises(UsageError, match="nanoGPT") as error:
        run((first, second), tmp_path / "shards")
    assert error.value.path == str(second)
    assert not (tmp_path / "shards").exists()


def test_a_document_goes_on_in_the_next_file_of_llmc(tmp_path):
    ids = flat([EOS, *document] for document in BARE)
    parts = llmc(tmp_path / "a.bin", [ids[:3001]]), llmc(tmp_path / "b.bin", [ids[3001:]])
    report = run(parts, tmp_path / "shards", shard_tokens=700)
    assert stream(tmp_path / "shards") == ids
    assert report.manifest["total_documents"] == len(BARE)
    # No encoding has an end of text before each document.
    assert report.manifest["eos_policy"] is None


@pytest.mark.parametrize(
    ("ids", "policy", "documents"),
    [
        (flat(DOCUMENTS), "after", 60),
        (flat(DOCUMENTS)[:-1], "between", 60),
        (flat(BARE), "none", None),
    ],
)
def test_where_ends_of_text_stand_is_recorded(ids, policy, documents, tmp_path):
    report = run(nanogpt(tmp_path / "a.bin", [ids]), tmp_path / "shards", shard_tokens=700)
    assert stream(tmp_path / "shards") == ids
    assert (report.manifest["eos_policy"], report.manifest["total_documents"]) == (policy, documents)
    told = any("not known where documents end" in note for note in report.notes)
    assert told == (documents is None)
    if documents is None:
        assert {shard.tokens for shard in ShardDir(tmp_path / "shards").shards[:-1]} == {700}
        assert "documents" not in report.manifest["shards"][0]
    assert repair(tmp_path / "shards", tokenizer=TOKENIZER, verify=True).ok


@pytest.mark.parametrize("format_", [name for name, (*_, indexed) in WRITERS.items() if indexed])
@pytest.mark.parametrize("chunk", [64, 1 << 20])
def test_ends_of_text_are_inserted_where_the_index_says(format_, chunk, tmp_path, monkeypatch):
    write, name, _ = WRITERS[format_]
    # Every third document has one already.
    mixed = [DOCUMENTS[n] if n % 3 == 0 else BARE[n] for n in range(60)]
    path = write(tmp_path / name, mixed)
    plain = run(path, tmp_path / "plain", shard_tokens=700)
    assert stream(tmp_path / "plain") == flat(mixed)
    assert (plain.manifest["total_documents"], plain.manifest["eos_token_count"]) == (60, 20)
    monkeypatch.setattr("apr.data.token_import._CHUNK", chunk)
    report = run(path, tmp_path / "inserted", shard_tokens=700, insert_eos=True)
    assert stream(tmp_path / "inserted") == flat(DOCUMENTS)
    assert report.manifest["imported"]["inserted_eos"] == 40
    assert report.manifest["eos_policy"] == "after"
    assert repair(tmp_path / "inserted", tokenizer=TOKENIZER, verify=True).ok


def test_documents_without_an_end_of_text_are_said_to_have_none(tmp_path):
    report = run(datatrove(tmp_path / "a.ds", BARE), tmp_path / "shards")
    assert any("--insert-eos" in note for note in report.notes)
    assert (report.manifest["eos_policy"], report.manifest["total_documents"]) == ("none", 60)
    with pytest.raises(UsageError, match="index"):
        run(nanogpt(tmp_path / "a.bin", BARE), tmp_path / "other", insert_eos=True)


@pytest.mark.parametrize(
    ("dtype", "bad", "shown"), [("<u2", 512, "512"), ("<i4", -1, "-1"), ("<i8", 2**40, str(2**40))]
)
def test_an_id_that_the_vocabulary_does_not_have_is_named(dtype, bad, shown, tmp_path):
    ids = np.array(flat(DOCUMENTS))
    ids[5000] = bad
    path = npy(tmp_path / "a.npy", [ids], dtype)
    with pytest.raises(RefusedError, match=f"id {shown} ") as error:
        run(path, tmp_path / "shards")
    assert (error.value.path, error.value.offset) == (str(path), 128 + 5000 * np.dtype(dtype).itemsize)
    # Nothing is left that --force would be needed for.
    assert not (tmp_path / "shards" / "manifest.json").exists()


def command(path, output, *more):
    return ["tokenize", "import", str(path), str(output), "--tokenizer", str(TOKENIZER), *more]


@pytest.mark.parametrize(("insert", "moments"), [((), (3, 4, 6, 9, -2)), (("--insert-eos",), (8, 10, -7))])
def test_an_import_killed_at_any_step_resumes_to_the_same_bytes(insert, moments, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    datatrove(source / "a.ds", BARE[:25])
    datatrove(source / "b.ds", BARE[25:])
    flags = ("--shard-tokens", "2000", *insert)
    assert main(command(source, tmp_path / "whole", *flags)) == 0
    whole = snapshot(tmp_path / "whole")
    # Three steps for each file: created, whole, named. A manifest before and after all, and one a shard.
    steps = 3 + 6 * len(whole[0]) + 3
    assert len(whole[0]) > 4
    for n, moment in enumerate(moments):
        output, step = tmp_path / str(n), moment % (steps + 1)
        argv = command(source, output, *flags)
        killed = subprocess.run([sys.executable, "-c", KILLED, str(step), *argv], check=False)
        assert killed.returncode == -signal.SIGKILL
        left = {path.name for path in output.glob("*.bin")}
        if (output / "manifest.json").exists():
            # At most the open shard is lost.
            assert len(left) - read_json(output)["shard_count"] in (0, 1)
        for name in left:
            assert (output / name).read_bytes() == whole[0][name]
        assert main([*argv, "--resume"]) == 0
        assert snapshot(output) == whole
    # One step more is none.
    words = [KILLED, str(steps + 1), *command(source, tmp_path / "more", *flags)]
    subprocess.run([sys.executable, "-c", *words], check=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_whole_shards(number, code, tmp_path, monkeypatch, capsys):
    from contextlib import contextmanager

    output = tmp_path / "shards"

    @contextmanager
    def signalled(_):
        def update(*_):
            if len(list(output.glob("*.bin"))) >= 3:
                os.kill(os.getpid(), number)

        yield update

    path = megatron(tmp_path / "a.bin", DOCUMENTS)
    with monkeypatch.context() as patched:
        patched.setattr("apr.cli.tokenize._progress_bar", signalled)
        assert main(command(path, output, "--shard-tokens", "700")) == code
    assert "--resume" in capsys.readouterr().err
    assert read_json(output)["complete"] is False
    assert read_json(output)["shard_count"] == len(list(output.glob("*.bin"))) >= 3
    assert not list(output.glob(".*"))
    run(path, tmp_path / "whole", shard_tokens=700)
    assert main(command(path, output, "--shard-tokens", "700", "--resume")) == 0
    assert snapshot(output) == snapshot(tmp_path / "whole")


def interrupted(path, output):
    """Import two shards, and stop as Ctrl-C does."""

    def stop(*_):
        if len(list(output.glob("*.bin"))) >= 2:
            raise KeyboardInterrupt

    options = ImportOptions(sources=(path,), output=output, tokenizer=TOKENIZER, shard_tokens=700)
    with pytest.raises(KeyboardInterrupt):
        import_tokens(options, stop)


def test_resuming_something_else_is_refused(tmp_path):
    path, output = datatrove(tmp_path / "a.ds", DOCUMENTS), tmp_path / "shards"
    interrupted(path, output)
    for changes in ({"shard_tokens": 800}, {"shard_tokens": 700, "insert_eos": True}):
        with pytest.raises(RefusedError, match="cannot resume"):
            run(path, output, resume=True, **changes)
    with pytest.raises(RefusedError, match="already contains"):
        run(path, output, shard_tokens=700)
    # Neither may an encoding continue it, nor a reader take it.
    text = tmp_path / "a.txt"
    text.write_text("text")
    encode = ["tokenize", "encode", "--corpus", str(text), "--tokenizer", str(TOKENIZER)]
    assert main([*encode, "--output", str(output), "--resume"]) == 5
    with pytest.raises(RefusedError, match="interrupted"):
        ShardDir(output)
    datatrove(path, DOCUMENTS[:-1])
    with pytest.raises(RefusedError, match="cannot resume"):
        run(path, output, shard_tokens=700, resume=True)
    run(path, output, shard_tokens=700, force=True)
    assert stream(output) == flat(DOCUMENTS[:-1])


def test_a_complete_import_is_up_to_date_while_its_files_are(tmp_path):
    path, output = datatrove(tmp_path / "a.ds", DOCUMENTS), tmp_path / "shards"
    run(path, output)
    assert run(path, output, resume=True).complete_before
    # Another id, the same size and time.
    status, content = path.stat(), bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(RefusedError, match="changed") as error:
        run(path, output, resume=True)
    assert error.value.path == str(path)


def test_a_file_that_changes_meanwhile_is_named(tmp_path):
    path, output = nanogpt(tmp_path / "a.bin", DOCUMENTS), tmp_path / "shards"
    options = ImportOptions(sources=(path,), output=output, tokenizer=TOKENIZER, shard_tokens=700)
    with pytest.raises(RefusedError, match="changed") as error:
        import_tokens(options, lambda *_: os.utime(path))
    assert error.value.path == str(path)
    assert read_json(output)["complete"] is False


def test_a_full_disk_is_an_error_that_resumes(tmp_path, capsys):
    path, output = nanogpt(tmp_path / "a.bin", DOCUMENTS), tmp_path / "shards"
    with disk_full():
        assert main(command(path, output)) == 7
    assert "shards" in capsys.readouterr().err
    assert main(command(path, output)) == 0
    assert stream(output) == flat(DOCUMENTS)


def test_a_damaged_index_writes_nothing(tmp_path):
    path = megatron(tmp_path / "a.bin", DOCUMENTS)
    content = bytearray(path.with_suffix(".idx").read_bytes())
    content[-1] = 0x7F
    path.with_suffix(".idx").write_bytes(content)
    with pytest.raises(FormatError):
        run(path, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


def test_memory_does_not_grow_with_the_file(tmp_path):
    # One document of 64 MB of ids, which is in one shard of 128 MB.
    ids = np.tile(np.arange(1, 500, dtype="<u2"), 32 * 2**20 // 499)
    ids.tofile(tmp_path / "a.ds")
    np.array([len(ids)], "<u8").tofile(tmp_path / "a.ds.index")
    code = (
        "import resource, sys\n"
        "from apr.cli import main\n"
        "import apr.data.token_import, apr.cli.tokenize, numpy\n"
        "main(['tokenize', 'import', sys.argv[1], sys.argv[2] + '-small', '--tokenizer', sys.argv[3]])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert main(['tokenize', 'import', sys.argv[4], sys.argv[2], '--tokenizer', sys.argv[3]]) == 0\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    small = nanogpt(tmp_path / "b.bin", DOCUMENTS)
    words = [small, tmp_path / "shards", TOKENIZER, tmp_path / "a.ds"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=True
    )
    # KiB. A chunk of a million ids is a few MB.
    assert int(done.stdout.splitlines()[-1]) < 40 << 10
    assert ShardDir(tmp_path / "shards").total_tokens == len(ids)


def test_the_command_prints_a_summary_and_json(tmp_path, capsys):
    path = datatrove(tmp_path / "a.ds", BARE)
    assert main(command(path, tmp_path / "shards")) == 0
    printed = capsys.readouterr()
    assert "datatrove" in printed.out
    assert "--insert-eos" in printed.err
    assert main(command(path, tmp_path / "other", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["input_format"] == "datatrove"
    by_flag = ["tokenize", "import", str(path), "--output", str(tmp_path / "third"), "--tokenizer"]
    assert main([*by_flag, str(TOKENIZER)]) == 0
    assert main(["tokenize", "import", str(path), "--tokenizer", str(TOKENIZER)]) == 2
    assert main(command(tmp_path / "missing.ds", tmp_path / "fourth")) == 3
