"""Encodings on a failing machine: kills at any call, signals, full disks, bad files, other writers."""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import LONG
from tests.killing import STEPS

from apr.cli import main
from apr.data.corpus import Corpus, Document, Place, Skipped
from apr.data.encode import encode_corpus
from apr.data.encode_options import EncodeOptions
from apr.data.output_dir import lock_output
from apr.data.sample import draw_sample
from apr.errors import RefusedError

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "imported-0.72" / "hf_llama_tied"
VOLATILE = ("elapsed_seconds", "num_workers")
SHARD_TOKENS = 20_000

# Runs one command a line in a child of its own, all of which come of one process that has imported what they
# need. A child is killed at its n-th step of writing, or at the n-th call of a function or return from one,
# of Python or C, in any thread, after the first step, with which writing begins: other threads may be
# anywhere then, and the load of the machine moves nothing. It prints how the child ended and, of one that did
# so by itself, how many calls and returns it made.
SERVER = (
    f"""
STEPS = {STEPS!r}
"""
    """
import json, os, signal, sys, threading
import pyarrow.parquet, rich.progress
import apr.data.corpus
from apr.cli import main
import apr.cli.tokenize

apr.data.corpus.BATCH_BYTES = 20_000  # several batches for each shard

calls = 0

def killed(at_step, call):
    steps = 0
    def called(*_):
        global calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
    def step():
        nonlocal steps
        steps += 1
        if steps == at_step:
            os.kill(os.getpid(), signal.SIGKILL)
        if steps == 1 and call:
            sys.setprofile(called)
    if call:
        threading.setprofile(called)
    exec(STEPS, {"step": step})

for line in sys.stdin:
    argv, step, call = json.loads(line)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        for descriptor in (1, 2):
            os.dup2(os.open("/dev/null", os.O_WRONLY), descriptor)
        killed(step, call)
        code = main(argv)
        sys.setprofile(None)
        os.write(theirs, str(calls).encode())
        os._exit(code)
    os.close(theirs)
    _, status = os.waitpid(child, 0)
    made = int(os.read(ours, 100) or 0)
    os.close(ours)
    print(json.dumps([os.waitstatus_to_exitcode(status), made]), flush=True)
"""
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Every kind of file, with documents that are none among them."""
    import pyarrow as pa
    from pyarrow import parquet

    root = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(0)
    words = [f"def f{n}(x): return x + {n}  # wörd\n" for n in range(500)]
    texts = ["".join(random.choice(words, int(random.integers(0, 60)))) for _ in range(240)]
    lines = b"".join(json.dumps({"content": text}).encode() + b"\n" for text in texts[:60])
    (root / "a.jsonl").write_bytes(lines[:9000] + b"\n\nnonsense\n" + lines[9000:])
    (root / "b.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    for n, text in enumerate(texts[60:180]):
        (root / f"c{n:03}.py").write_text(text)
    (root / "c050.py").write_bytes(b"\xe9")
    column = pa.array([*texts[180:200], None, *texts[200:]])
    parquet.write_table(pa.table({"content": column}), root / "d.parquet", row_group_size=16)
    (root / "e.json").write_text(json.dumps([{"content": text} for text in texts[:20]], indent=1))
    return root


def flags(corpus, output, *more):
    given = ["--corpus", str(corpus), "--tokenizer", str(TOKENIZER), "--output", str(output)]
    return ["tokenize", "encode", *given, "--shard-tokens", str(SHARD_TOKENS), *more]


def snapshot(directory):
    manifest = json.loads((directory / "manifest.json").read_text())
    files = {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "manifest.json"}
    return files, [(key, value) for key, value in manifest.items() if key not in VOLATILE]


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """What an encoding makes that nothing interrupts."""
    output = tmp_path_factory.mktemp("whole") / "shards"
    assert main(flags(corpus, output)) == 0
    return snapshot(output)


@contextmanager
def server():
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def run(argv, *, step=0, call=0):
            process.stdin.write(json.dumps([argv, step, call]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield run
        process.stdin.close()


def state(output):
    """What a kill left: no manifest, or how many shards are counted and how many are there."""
    manifest = output / "manifest.json"
    counted = json.loads(manifest.read_text())["shard_count"] if manifest.exists() else None
    return counted, len(list(output.glob("*.bin"))), len(list(output.glob(".*.apr-tmp")))


def check_left(output, whole):
    """Whatever is there under a shard's name is that shard, whole."""
    for shard in output.glob("*.bin"):
        assert shard.read_bytes() == whole[0][shard.name]


def test_an_encoding_killed_at_any_call_resumes_to_the_same_bytes(corpus, whole, tmp_path):
    output = tmp_path / "shards"
    number = 100 if LONG else 6
    states = set()
    with server() as run:
        _, calls = run(flags(corpus, tmp_path / "counted"), call=-1)
        for n, where in enumerate(np.random.default_rng(0).uniform(0, 1, number)):
            # Over all that an encoding does, more of them early, each by chance within its part of it.
            first = ["--workers", str(n % 3 + 1)]
            run(flags(corpus, output, *first), call=1 + int(calls * ((n + where) / number) ** 2))
            check_left(output, whole)
            states.add(state(output))
            more = ["--resume", "--workers", str((n + 1) % 3 + 1)]
            run(flags(corpus, output, *more), call=1 + int(calls * where / 2))
            check_left(output, whole)
            states.add(state(output))
            assert run(flags(corpus, output, "--resume"))[0] == 0
            assert snapshot(output) == whole
            shutil.rmtree(output)
    assert len({counted for counted, *_ in states}) > 3, states


def test_an_encoding_killed_at_any_step_resumes_to_the_same_bytes(corpus, whole, tmp_path):
    output = tmp_path / "shards"
    # Three steps for each file: it is created, whole, has its name. Two files for each shard, the second is
    # the manifest; one manifest before and one after all shards.
    steps = 3 + 6 * len(whole[0]) + 3
    moments = range(1, steps + 1) if LONG else [1, 4, 5, 6, 7, 8, 9, steps - 1, steps]
    with server() as run:
        for step in moments:
            assert run(flags(corpus, output), step=step)[0] == -signal.SIGKILL
            check_left(output, whole)
            assert run(flags(corpus, output, "--resume"))[0] == 0
            assert snapshot(output) == whole
            shutil.rmtree(output)
        assert run(flags(corpus, output), step=steps + 1)[0] == 0


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGHUP, 129),
        (signal.SIGUSR1, 138),
        (signal.SIGUSR2, 140),
        (signal.SIGXCPU, 152),
    ],
)
def test_a_signal_keeps_whole_shards(number, code, corpus, whole, tmp_path, monkeypatch, capsys):
    @contextmanager
    def signalled(_):
        def update(*_):
            if len(list((tmp_path / "shards").glob("*.bin"))) >= 3:
                os.kill(os.getpid(), number)

        yield update

    monkeypatch.setattr("apr.data.corpus.BATCH_BYTES", 20_000)
    with monkeypatch.context() as patched:
        patched.setattr("apr.cli.tokenize._progress_bar", signalled)
        assert main(flags(corpus, tmp_path / "shards")) == code
    kept = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    assert kept["complete"] is False
    assert 3 <= kept["shard_count"] < len(whole[0])
    assert kept["shard_count"] == len(list((tmp_path / "shards").glob("*.bin")))
    error = capsys.readouterr().err
    assert f"{kept['shard_count']} complete shards with {kept['total_tokens']:,} tokens" in error
    assert "--resume" in error
    # Only the open shard is encoded again: all texts but those of the shards that were kept.
    made = encode_corpus(
        EncodeOptions((str(corpus),), TOKENIZER, tmp_path / "shards", shard_tokens=SHARD_TOKENS, resume=True)
    )
    rest = list(documents(Corpus([str(corpus)]), Place(*kept["progress"]["place"])))
    assert made.text_bytes == sum(len(item.text.encode()) for item in rest if isinstance(item, Document))
    assert snapshot(tmp_path / "shards") == whole


def documents(corpus, start):
    for batch in corpus.batches(start):
        yield from corpus.read_all(batch)


def test_batches_from_any_place_on_contain_the_remaining_documents(corpus):
    reader = Corpus([str(corpus)], batch_bytes=20_000)
    everything = list(documents(reader, Place()))
    assert len(everything) > 250
    passed = 0
    for batch in reader.batches():
        for n in range(0, len(batch.stored), 5):
            before = sum(1 for i in range(n) if reader.read(batch, i) is not None)
            assert list(documents(reader, batch.after(n))) == everything[passed + before :]
        passed += sum(1 for _ in reader.read_all(batch))


def test_documents_before_the_place_are_not_read_again(tmp_path):
    for n in range(3):
        (tmp_path / f"{n}.txt").write_text(f"text {n}")
    (tmp_path / "3.jsonl").write_text('{"content": "a"}\n{"content": "b"}\n')
    corpus = Corpus([str(tmp_path)])
    (tmp_path / "0.txt").unlink()
    (tmp_path / "1.txt").unlink()
    assert [item.text for item in documents(corpus, Place(2))] == ["text 2", "a", "b"]
    (tmp_path / "3.jsonl").write_text('###############!\n{"content": "b"}\n')
    assert [item.text for item in documents(corpus, Place(3, 1, 17))] == ["b"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_file_that_ends_before_the_place_is_refused(suffix, tmp_path):
    path = tmp_path / f"a.jsonl{suffix}"
    lines = b'{"content": "a"}\n'
    path.write_bytes(gzip.compress(lines, mtime=0) if suffix else lines)
    corpus = Corpus([str(path)])
    assert list(documents(corpus, Place(0, 1, 17))) == []
    with pytest.raises(RefusedError, match=r"a\.jsonl.*17 bytes.*byte 18"):
        list(documents(corpus, Place(0, 1, 18)))


def test_a_second_encoding_of_a_directory_is_refused(corpus, tmp_path, capsys):
    with lock_output(tmp_path / "shards"):
        for more in ([], ["--resume"], ["--force"]):
            assert main(flags(corpus, tmp_path / "shards", *more)) == 5
            error = capsys.readouterr().err
            assert str(tmp_path / "shards") in error
            assert len(error.splitlines()) == 1
    assert main(flags(corpus, tmp_path / "shards")) == 0


def test_a_changed_lost_or_uncounted_shard_is_not_built_upon(corpus, tmp_path, capsys):
    def spoil(shards):
        shards[0].write_bytes(bytes(shards[0].stat().st_size))

    def lose(shards):
        shards[0].unlink()

    def add(shards):
        for n in (1, 2):
            shutil.copy(shards[0], shards[-1].with_name(f"shard-{len(shards) + n:05}.bin"))

    acts = {spoil: "shard-00000.bin: changed", lose: "shard-00000.bin: is missing", add: "does not list"}
    with server() as run:
        for n, (act, says) in enumerate(acts.items()):
            output = tmp_path / str(n)
            assert run(flags(corpus, output), step=25)[0] == -signal.SIGKILL
            act(sorted(output.glob("*.bin")))
            assert main(flags(corpus, output, "--resume")) == 5
            assert says in capsys.readouterr().err
            assert main(flags(corpus, output, "--force")) == 0


def test_a_file_that_changes_while_it_is_encoded_leaves_the_manifest_incomplete(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name)
    options = EncodeOptions((str(tmp_path),), TOKENIZER, tmp_path / "shards", pattern=("*.txt",))
    with pytest.raises(RefusedError, match=r"b\.txt: changed"):
        encode_corpus(options, lambda _: (tmp_path / "b.txt").write_text("longer"))
    assert json.loads((options.output / "manifest.json").read_text())["complete"] is False


def test_files_that_vanish_before_they_are_read_are_skipped(tmp_path, monkeypatch):
    names = ("a.txt", "b.jsonl", "c.parquet", "d.txt")
    for name in names:
        (tmp_path / name).write_text('{"content": "x"}')

    def vanish(*_):
        for name in names[:3]:
            (tmp_path / name).unlink()

    monkeypatch.setattr("apr.data.encoding.draw_sample", lambda *given: vanish() or draw_sample(*given))
    options = EncodeOptions((str(tmp_path),), TOKENIZER, tmp_path / "shards")
    made = encode_corpus(options)
    counts = [made.manifest[key] for key in ("complete", "total_documents", "skipped_documents")]
    assert counts == [True, 1, 3]
    assert [item.name for item in made.skipped] == [str(tmp_path / name) for name in names[:3]]


def test_a_file_that_vanishes_after_it_was_read_is_a_change(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("x")
    options = EncodeOptions((str(tmp_path),), TOKENIZER, tmp_path / "shards")
    with pytest.raises(RefusedError, match=r"a\.txt: changed"):
        encode_corpus(options, lambda _: (tmp_path / "a.txt").unlink())


@pytest.mark.parametrize("compression", ["snappy", "zstd", "none"])
def test_a_damaged_parquet_file_is_named(compression, tmp_path, capsys):
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    texts = [f"text {n} {n**5}" for n in range(500)]
    parquet.write_table(pa.table({"content": texts}), path, compression=compression, use_dictionary=False)
    whole = path.read_bytes()
    failed = 0
    for at in range(4, len(whole), len(whole) // 40):
        path.write_bytes(whole[:at] + bytes(byte ^ 0xFF for byte in whole[at : at + 8]) + whole[at + 8 :])
        code = main(flags(path, tmp_path / "shards", "--force"))
        error = capsys.readouterr().err
        # Damage within a text makes it invalid UTF-8; that document is skipped.
        assert code in (0, 4), error
        failed += code == 4
        if code == 4:
            assert len(error.splitlines()) == 1
            assert f"{path}: " in error
    assert failed > 2


def test_unreadable_files_are_skipped_counted_and_named(tmp_path, capsys):
    root = tmp_path / "tree"
    root.mkdir()
    for n in range(2000):
        (root / f"{n:04}.txt").write_text(f"text {n}\n")
    # Not even the superuser reads this one.
    (root / "1000.txt").unlink()
    (root / "1000.txt").symlink_to("/proc/self/mem")
    assert main(flags(root, tmp_path / "shards", "--json")) == 0
    captured = capsys.readouterr()
    manifest = json.loads(captured.out)
    assert (manifest["total_documents"], manifest["skipped_documents"]) == (1999, 1)
    assert f"skipped: {root / '1000.txt'}: " in captured.err
    assert main(flags(root, tmp_path / "strict", "--strict")) == 5
    assert not (tmp_path / "strict" / "shard-00000.bin").exists()


def test_a_file_that_vanishes_after_the_listing_is_skipped(tmp_path):
    for name in ("a.txt", "b.jsonl", "c.parquet", "d.txt"):
        (tmp_path / name).write_text("x")
    corpus = Corpus([str(tmp_path)])
    for name in ("a.txt", "b.jsonl", "c.parquet"):
        (tmp_path / name).unlink()
    *gone, left = documents(corpus, Place())
    assert left == Document(str(tmp_path / "d.txt"), "x")
    assert all(isinstance(item, Skipped) and "No such file" in item.reason for item in gone)
    assert len(gone) == 3


def test_a_pipe_as_a_path_is_wrong_usage(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert main(flags(tmp_path / "pipe.jsonl", tmp_path / "shards")) == 2
    assert "pipe.jsonl" in capsys.readouterr().err
    (tmp_path / "a.txt").write_text("a")
    assert main(flags(tmp_path, tmp_path / "shards")) == 0


FULL = """
import json, os, shutil, subprocess, sys
from apr.cli import main
argv, place = json.loads(sys.argv[1]), sys.argv[2]
print(main(argv))
print(len([name for name in os.listdir(place + "/out") if name.endswith(".bin")]), flush=True)
subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
print(main([*argv, "--resume"]))
shutil.copytree(place + "/out", sys.argv[3])
"""


def test_a_full_disk_keeps_whole_shards_and_resume_continues(corpus, whole, tmp_path):
    (tmp_path / "full").mkdir()
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "apr", str(tmp_path / "full")]
    if shutil.which("unshare") is None or subprocess.run([*alone, *mount], check=False).returncode:
        pytest.skip("a file system of its own may not be mounted here")
    argv = json.dumps(flags(corpus, tmp_path / "full" / "out"))
    inside = ["sh", "-c", f'{" ".join(mount)} && exec "$@"', "sh", sys.executable, "-c", FULL]
    done = subprocess.run(
        [*alone, *inside, argv, str(tmp_path / "full"), str(tmp_path / "copy")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    full, shards, *_, resumed = done.stdout.splitlines()
    assert (full, resumed) == ("7", "0")
    kept, error, *_ = done.stderr.splitlines()
    # There may have been room for one more shard, but not for the manifest that counts it.
    assert any(f"{int(shards) - more} complete shard" in kept for more in (0, 1))
    assert re.search(r"full/out/[.\w-]+: No space", error)
    assert snapshot(tmp_path / "copy") == whole


LARGE = """
import resource, sys
from pathlib import Path
from apr.data.encode import encode_corpus
from apr.data.encode_options import EncodeOptions

root, tokenizer = Path(sys.argv[1]), Path(sys.argv[2])
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
encode_corpus(EncodeOptions((str(root / "small.txt"),), tokenizer, root / "small"))
before = peak()
made = encode_corpus(EncodeOptions((str(root / "large.txt"),), tokenizer, root / "large"))
print((peak() - before) / made.text_bytes, made.manifest["shard_count"], made.manifest["total_documents"])
"""


def test_the_memory_for_a_large_document_is_a_small_multiple_of_its_size(tmp_path):
    megabytes = 200 if LONG else 24
    text = "def f(x):\n    return x + 1  # wörd\n" * 30_000
    with (tmp_path / "large.txt").open("w") as file:
        for _ in range(megabytes):
            file.write(text)
    (tmp_path / "small.txt").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", LARGE, tmp_path, TOKENIZER], capture_output=True, text=True, check=True
    )
    times, shards, count = done.stdout.split()
    # The text, and twice 4 bytes for each of its ids, which are as many as two bytes have: hence 1 + 2 * 2.
    assert float(times) < 8
    assert (shards, count) == ("1", "1")
