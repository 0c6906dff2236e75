"""Ctrl-C ends what reads every byte of a file soon."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.container.forged import Entry, forge

import apr

SIZE = 1 << 40  # a terabyte of holes: reading it all takes minutes


@pytest.fixture
def holes(tmp_path):
    path = tmp_path / "holes.apr"
    head = forge(Entry(dtype=7, dims=(SIZE,), size=SIZE), body=b"")[:-4]
    with path.open("wb") as file:
        file.write(head)
        try:
            file.truncate(len(head) + SIZE + 4)
        except OSError as error:
            pytest.skip(f"no file of {SIZE} bytes here: {error}")
    return path


def has_read(process):
    """Bytes that a process has read so far."""
    lines = Path(f"/proc/{process.pid}/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar:")))


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "apr", "verify"],
        ["-m", "apr", "inspect"],
        ["-c", "import sys, apr; apr.load(sys.argv[1], verify='full')"],
        ["-m", "apr", "convert", "--dtype", "f32"],
    ],
    ids=["verify", "inspect", "load", "convert"],
)
def test_ctrl_c_ends_a_check_early(arguments, holes):
    target = [str(holes.with_name("out.safetensors"))] if "convert" in arguments else []
    command = [sys.executable, *arguments, str(holes), *target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while has_read(process) < 1 << 28 and process.poll() is None:
            os.sched_yield()
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        while process.poll() is None and (read := has_read_or_none(process)) is not None:
            assert read < SIZE // 2, "it goes on reading"
        _, stderr = process.communicate()
    assert process.returncode in ({130} if "-m" in arguments else {130, -signal.SIGINT}), stderr
    assert not holes.with_name("out.safetensors").exists()


def has_read_or_none(process):
    try:
        return has_read(process)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def test_an_exception_in_on_progress_ends_the_check(holes):
    calls = []

    def enough(read, total):
        calls.append((read, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apr.verify(holes, on_progress=enough)
    ((read, total),) = calls
    assert 0 < read < total == holes.stat().st_size
