"""Runs in child processes, forked from one that has imported torch, so that a start costs milliseconds."""

from __future__ import annotations

import ctypes
import fcntl
import io
import json
import multiprocessing
import os
import resource
import signal
import sys
import termios
import threading
from dataclasses import replace
from itertools import count
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

# The exit code of a child that may not mount a file system.
NO_MOUNT = 77


def start(target, *arguments):
    """Call a function of this module in a child, and return the child. It does not outlive this process."""
    child = _CONTEXT.Process(target=target, args=arguments, daemon=True)
    child.start()
    return child


def run(config):
    """Train, and exit with the run's exit code."""
    import torch

    from apr.train import finish, pretrain

    torch.set_num_threads(1)
    finish.plot_losses = lambda *_, **__: None  # the picture takes half the time of such a short run
    sys.exit(pretrain(config, out=io.StringIO()).exit_code)


def run_with_memory(config, nbytes):
    """Train in a process that may have so many more bytes than it has, and exit with the run's exit code."""
    from apr.errors import RefusedError, exit_code

    _limit_memory(nbytes)
    try:
        run(config)
    except RefusedError as error:
        print(error, file=sys.stderr)
        sys.exit(exit_code(error))


def run_out_of_memory(config, nbytes):
    """Train under a high limit of memory, which after the first checkpoint is lowered to so many bytes."""
    import torch

    from apr.train import Callbacks, finish, pretrain

    torch.set_num_threads(1)
    finish.plot_losses = lambda *_, **__: None
    before = _address_space()
    _limit_memory(1 << 36)

    def limit(_):
        _limit_memory(before + nbytes - _address_space())

    pretrain(config, callbacks=Callbacks(on_checkpoint=limit), out=io.StringIO())


def _address_space():
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmSize")) * 1024


def _limit_memory(nbytes):
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + nbytes, hard))


def start_and_stay(config, evaluation=None):
    """Train in a child that waits for a signal in the fourth step, or within the n-th evaluation.

    Returns the child once it waits.
    """
    ready, sender = _CONTEXT.Pipe(duplex=False)
    child = start(_run_and_stay, config, sender, evaluation)
    sender.close()
    ready.recv()  # raises if the child ended instead
    return child


def _run_and_stay(config, sender, evaluation):
    from apr.train import loop
    from apr.train.record.metrics import MetricsFile

    write, evaluate, evaluations = MetricsFile.write, loop.evaluate, [0]

    def stay():
        # Not `signal.pause`: the signal may arrive before it.
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        sender.send(None)
        os.read(reader, 1)
        signal.set_wakeup_fd(-1)

    def writing(self, record):
        write(self, record)
        if evaluation is None and record["step"] == 3 and "train_loss" in record:
            stay()

    def evaluating(*arguments, on_progress, **options):
        def staying(done, total):
            if evaluations[0] == evaluation and 0 < done < total:
                evaluations[0] += 1
                stay()
            on_progress(done, total)

        evaluations[0] += 1
        return evaluate(*arguments, on_progress=staying, **options)

    MetricsFile.write, loop.evaluate = writing, evaluating
    run(config)


def lose_the_terminal(arguments):
    """Run a command line on a terminal of its own that is closed in the fourth step."""
    import pty

    from apr.cli import main
    from apr.train.record.metrics import MetricsFile

    master, terminal = pty.openpty()
    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    for descriptor in (0, 1, 2):
        os.dup2(terminal, descriptor)
    os.close(terminal)
    write = MetricsFile.write

    def writing(self, record):
        write(self, record)
        if record["step"] == 3 and "train_loss" in record:
            os.close(master)

    MetricsFile.write = writing
    sys.exit(main(arguments))


def count_calls(config):
    """Train in a child, and return how many calls of the package's functions that took."""
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    child = start(_run_and_count, config, sender)
    sender.close()
    calls = receiver.recv()
    child.join()
    return calls


def _run_and_count(config, sender):
    calls = count(1)
    last = [0]

    def counting():
        last[0] = next(calls)

    _on_each_call(counting)
    try:
        run(config)
    finally:
        sys.setprofile(None)
        sender.send(last[0])


def run_and_die_at_call(config, when):
    """Train, and die by SIGKILL at the n-th call of one of the package's functions, in whatever thread."""
    calls = count(1)

    def dying():
        if next(calls) == when:
            os.kill(os.getpid(), signal.SIGKILL)

    _on_each_call(dying)
    run(config)


def _on_each_call(function):
    import apr

    package = str(Path(apr.__file__).parent)

    def profile(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(package):
            function()

    threading.setprofile(profile)
    sys.setprofile(profile)


def run_and_die(config, module, name, when):
    """Train, and die by SIGKILL when a function is called for the n-th time."""
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
    """Train on a disk that is full at the second checkpoint; then make room, and resume.

    Args:
        config: the options; its run directory becomes a file system of its own.
        expected: the epochs' checkpoints by name, as a run with enough room writes them.
        size: bytes of one checkpoint.
    """
    room = 4 * size
    if not _mount(config.run_dir, room):
        os._exit(NO_MOUNT)
    ballast = config.run_dir / "ballast"
    ballast.write_bytes(bytes(room - size * 3 // 2))
    _end_without_room(config, "No space left on device")
    ballast.unlink()
    _resume_with_room(config, expected)


def limit_files(config, expected, size):
    """Like `fill_the_disk`, with a limit on the size of files from the second checkpoint on."""
    from apr.train.record.recorder import Recorder

    checkpoint = Recorder.checkpoint
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limiting(self, record):
        checkpoint(self, record)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size * 3 // 4, before[1]))

    Recorder.checkpoint = limiting
    _end_without_room(config, "File too large")
    Recorder.checkpoint = checkpoint
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    _resume_with_room(config, expected)


def _end_without_room(config, why):
    import torch

    import apr
    from apr.train import pretrain
    from apr.train.start import preflight

    check, preflight.check_disk = preflight.check_disk, lambda *_: None  # the disk fills up during the run
    torch.set_num_threads(1)
    result = pretrain(config, out=io.StringIO())
    preflight.check_disk = check
    assert (result.status, result.exit_code) == ("FAILED", 7), result
    assert result.detail.endswith(f"epoch-001.apr: {why}"), result.detail
    assert result.last_checkpoint == "ckpt/epoch-000.apr"
    ckpt = config.run_dir / "ckpt"
    assert {path.name for path in ckpt.iterdir()} == {"epoch-000.apr", "epoch-000.metadata.json"}
    assert apr.verify(ckpt / "epoch-000.apr").ok
    assert json.loads((config.run_dir / "result.json").read_text())["status"] == "FAILED"


def _resume_with_room(config, expected):
    from apr.train import pretrain

    result = pretrain(replace(config, resume=True), out=io.StringIO())
    assert (result.status, result.exit_code) == ("BUDGET_SPENT", 0), result
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
