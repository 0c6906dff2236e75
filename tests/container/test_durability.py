"""Saving ends with the old file or the new one: killed at any byte, on a full disk, while it is mapped."""

import errno
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import apr

# For each size given, a child saves another file and is killed when the file that it writes reaches that many
# bytes. Prints whether the child was killed. All children are forks of one process that has loaded what they
# need.
KILLED = """
import os, resource, signal, sys
import numpy as np, apr
from pathlib import Path

path, how = Path(sys.argv[1]), sys.argv[2]
values = np.full(250_000, 1, np.float32)

def save():
    tensors = {"a": values, "b": values[:1000], "c": values}
    if how == "save":
        apr.save(tensors, path, {"new": True})
        return
    with apr.Writer(path, {"new": True}) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)

old = path.read_bytes()
for size in map(int, sys.argv[3:]):
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        save()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    others = [name.name for name in path.parent.iterdir() if name != path]
    # At most the file of the child that was killed last: each save removes what earlier ones left.
    assert len(others) <= 1 and all(name.endswith(".apr-tmp") for name in others), others
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXFSZ
    assert killed or status == 0, status
    assert (path.read_bytes() == old) == killed
    print(killed)
"""


@pytest.mark.parametrize("how", ["save", "writer"])
def test_a_save_killed_at_any_byte_leaves_the_old_file(how, tmp_path):
    path = tmp_path / "m.apr"
    apr.save({"old": np.ones(3)}, path)
    # Header, metadata, index, the first and last bytes of each tensor, footer; the last one is large enough.
    sizes = [0, 1, 63, 64, 80, 200, 400, 1000, 1_000_000, 1_004_000, 2_004_000, 2_004_350, 1 << 30]
    command = [sys.executable, "-c", KILLED, path, how, *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = done.stdout.split()
    assert len(outcomes) == len(sizes)
    assert (outcomes[0], outcomes[-1]) == ("True", "False")
    assert apr.verify(path).ok
    apr.save({}, path)
    assert [left.name for left in tmp_path.iterdir()] == ["m.apr"]


# Writes 4 MB by `save`, `Writer` and a command into a place that holds less, prints what each says, and then
# what is there.
FULL = """
import os, sys, numpy as np, apr
from pathlib import Path
from apr.cli import main

if sys.argv[2] == "limit":
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
source, path = Path(sys.argv[1]), Path(sys.argv[3])
tensors = {name: np.ones(1 << 18) for name in "ab"}

def write():
    with apr.Writer(path) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)

for act in (lambda: apr.save(tensors, path), write):
    try:
        act()
    except OSError as error:
        print(error.errno, error.filename)
print(main(["stamp", str(source), "a=1", "-o", str(path)]))
print([left.name for left in path.parent.iterdir()], apr.verify(path).ok, apr.load(path).metadata["old"])
"""


def write_where_it_is_full(tmp_path, kind, prefix=()):
    """Run the above over an old file in a directory of its own; its lines on stdout and stderr."""
    (tmp_path / "full").mkdir()
    source, path = tmp_path / "source.apr", tmp_path / "full" / "m.apr"
    apr.save({"a": np.ones(1 << 19)}, source)
    apr.save({"w": np.ones(3)}, tmp_path / "old.apr", {"old": True})
    shutil.copy(tmp_path / "old.apr", path)
    command = [*prefix, sys.executable, "-c", FULL, source, kind, path]
    return path, subprocess.run(command, capture_output=True, text=True, check=False)


def check_full(path, done, number):
    assert done.returncode == 0, done.stderr
    *errors, code, left = done.stdout.splitlines()
    assert errors == [f"{number} {path}"] * 2
    assert code == "7"
    assert done.stderr == f"apr stamp: error: {path}: {os.strerror(number)}\n"
    assert left == "['m.apr'] True True"


def test_a_file_size_limit_leaves_the_old_file_and_one_line_of_error(tmp_path):
    path, done = write_where_it_is_full(tmp_path, "limit")
    check_full(path, done, errno.EFBIG)


def test_a_full_disk_leaves_the_old_file_and_one_line_of_error(tmp_path):
    mount = 'mount -t tmpfs -o size=1m apr "$0" && cp "$1" "$0/m.apr" && shift && exec "$@"'
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    tried = [*alone, "mount", "-t", "tmpfs", "apr", tmp_path]
    if shutil.which("unshare") is None or subprocess.run(tried, capture_output=True, check=False).returncode:
        pytest.skip("a file system of its own may not be mounted here")
    prefix = [*alone, "sh", "-c", mount, tmp_path / "full", tmp_path / "old.apr"]
    path, done = write_where_it_is_full(tmp_path, "disk", prefix)
    check_full(path, done, errno.ENOSPC)


@pytest.mark.parametrize("how", ["save", "writer"])
def test_a_new_file_follows_the_umask_and_a_replaced_file_keeps_its_mode(how, tmp_path):
    code = """
import os, sys, numpy as np, apr
os.umask(0o027)
for path in sys.argv[2:]:
    if sys.argv[1] == "save":
        apr.save({"a": np.ones(3)}, path)
    else:
        apr.Writer(path).close()
"""
    for name, mode in [("private.apr", 0o600), ("shared.apr", 0o664)]:
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    (tmp_path / "link.apr").symlink_to("private.apr")
    paths = [tmp_path / name for name in ("new.apr", "private.apr", "shared.apr", "link.apr")]
    subprocess.run([sys.executable, "-c", code, how, *paths], check=True)
    modes = [path.stat().st_mode & 0o777 for path in paths]
    assert modes == [0o640, 0o600, 0o664, 0o600]
    assert (tmp_path / "link.apr").is_symlink()


@pytest.mark.parametrize("how", ["save", "writer", "stamp"])
def test_a_mapped_file_keeps_its_values_while_it_is_replaced(how, tmp_path):
    path = tmp_path / "m.apr"
    apr.save({"a": np.arange(100_000), "b": np.ones(3)}, path)
    file = apr.load(path)
    view = file.numpy("a")  # no page of it is in memory yet
    if how == "save":
        apr.save({"a": np.zeros(5)}, path)
    elif how == "writer":
        apr.Writer(path).close()
    else:
        apr.stamp(path, {"x": "y" * 5000}, path)
    assert np.array_equal(view, np.arange(100_000))
    assert file["b"].tolist() == [1, 1, 1]
    assert file.slice("a")[99_999:].item() == 99_999
    assert file.to_torch()["a"].sum() == 100_000 * 99_999 // 2
    assert file.verify().ok
    assert apr.verify(path).ok
    assert apr.load(path).header != file.header
