"""Runs in processes of their own, forked from one that has imported torch: a start costs milliseconds."""

from __future__ import annotations

import ctypes
import io
import json
import multiprocessing
import os
import resource
import signal
import sys
from dataclasses import replace
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "apr.train.run",
        "torch._dynamo",
        "torch._refs",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
        "yaml",
    ]
)

# The child's exit code where it may not mount a file system.
NO_MOUNT = 77


def start(target, *arguments):
    """Call a function of this module in a child, which a test that fails leaves to end with this process."""
    child = _CONTEXT.Process(target=target, args=arguments, daemon=True)
    child.start()
    return child


def run(config):
    """Train; the exit code is the run's."""
    import torch

    from apr.train import pretrain
    from apr.train import run as module

    torch.set_num_threads(1)
    module.plot_losses = lambda *_, **__: None  # half of such a short run
    sys.exit(pretrain(config, out=io.StringIO()).exit_code)


def start_and_stay(config, evaluation=None):
    """Train in a child that stays in the fourth step, or within the n-th evaluation, until a signal comes.

    Gives the child once it is there.
    """
    there, told = _CONTEXT.Pipe(duplex=False)
    child = start(_run_and_stay, config, told, evaluation)
    told.close()
    there.recv()  # raises if the child ended instead
    return child


def _run_and_stay(config, told, evaluation):
    from apr.train import loop
    from apr.train.record.metrics import MetricsFile

    write, evaluate, calls = MetricsFile.write, loop.evaluate, [0]

    def stay():
        # Not `pause`: the signal may come before it.
        came, comes = os.pipe()
        os.set_blocking(comes, False)
        signal.set_wakeup_fd(comes)
        told.send(None)
        os.read(came, 1)
        signal.set_wakeup_fd(-1)

    def writing(self, record):
        write(self, record)
        if evaluation is None and record["step"] == 3 and "train_loss" in record:
            stay()

    def evaluating(*arguments, on_progress, **options):
        def staying(done, total):
            if calls[0] == evaluation and 0 < done < total:
                calls[0] += 1
                stay()
            on_progress(done, total)

        calls[0] += 1
        return evaluate(*arguments, on_progress=staying, **options)

    MetricsFile.write, loop.evaluate = writing, evaluating
    run(config)


def run_and_die(config, module, name, when):
    """Train, and die by SIGKILL as a function is called for the n-th time."""
    from importlib import import_module

    owner = import_module(f"apr.train.{module}")
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), [0]

    def wrapped(*args, **kwargs):
        calls[0] += 1
        if calls[0] == when:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)
    run(config)


def fill_the_disk(config, expected, size):
    """Train where the second checkpoint finds the disk full; then, with room again, go on.

    Args:
        config: of a run in a directory that becomes a file system of its own.
        expected: checkpoints by name, as they are with room.
        size: bytes of one.
    """
    room = 4 * size
    if not _mount(config.run_dir, room):
        os._exit(NO_MOUNT)
    ballast = config.run_dir / "ballast"
    ballast.write_bytes(bytes(room - size * 3 // 2))
    _end_without_room(config, "No space left on device")
    ballast.unlink()
    _go_on_with_room(config, expected)


def limit_files(config, expected, size):
    """As `fill_the_disk`, but that the system refuses files of a checkpoint's size from the second one on."""
    from apr.train.record.recording import Recorder

    told = Recorder.checkpoint
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limiting(self, written):
        told(self, written)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size * 3 // 4, before[1]))

    Recorder.checkpoint = limiting
    _end_without_room(config, "File too large")
    Recorder.checkpoint = told
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    _go_on_with_room(config, expected)


def _end_without_room(config, why):
    import torch

    import apr
    from apr.train import pretrain
    from apr.train.start.needs import Needs

    check, Needs.check_disk = Needs.check_disk, lambda *_: None  # somebody else fills the disk later
    torch.set_num_threads(1)
    made = pretrain(config, out=io.StringIO())
    Needs.check_disk = check
    assert (made.status, made.exit_code) == ("FAILED", 7), made
    assert made.detail.endswith(f"epoch-001.apr: {why}"), made.detail
    assert made.last_checkpoint == "ckpt/epoch-000.apr"
    ckpt = config.run_dir / "ckpt"
    assert {path.name for path in ckpt.iterdir()} == {"epoch-000.apr", "epoch-000.metadata.json"}
    assert apr.verify(ckpt / "epoch-000.apr").ok
    assert json.loads((config.run_dir / "result.json").read_text())["status"] == "FAILED"


def _go_on_with_room(config, expected):
    from apr.train import pretrain

    made = pretrain(replace(config, resume=True), out=io.StringIO())
    assert (made.status, made.exit_code) == ("BUDGET_SPENT", 0), made
    ckpt = config.run_dir / "ckpt"
    assert {path.name: path.read_bytes() for path in ckpt.glob("*.apr")} == expected


def _mount(path: Path, size: int) -> bool:
    """Mount a file system in memory that this process alone sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_user, new_mounts = 0x10000000, 0x00020000
    user, group = os.getuid(), os.getgid()
    if libc.unshare(new_user | new_mounts):
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    except OSError:
        return False
    path.mkdir(exist_ok=True)
    return not libc.mount(b"apr", os.fsencode(path), b"tmpfs", 0, f"size={size}".encode())
