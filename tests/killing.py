"""Writing that fails: a process killed at a chosen moment, and a disk without room."""

import resource
from contextlib import contextmanager


@contextmanager
def disk_full():
    """Make every write to a file fail while the block runs, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Calls `step()` at each step of writing: when the temporary file of an atomic write has been created, when it
# is whole and when it has its name, and at each other flush of a file or directory.
STEPS = """
import os
import apr.files
fsync, AtomicFile = os.fsync, apr.files.AtomicFile

class Stepping:
    def __init__(self, path):
        self.file = AtomicFile(path)
        step()
    def __getattr__(self, name):
        return getattr(self.file, name)
    def commit(self):
        step()
        self.file.commit()
        step()

def flushed(descriptor):
    step()
    fsync(descriptor)

os.fsync, apr.files.AtomicFile = flushed, Stepping
"""

# Kills the process at the n-th step of writing.
KILLED = f"""
import os, signal, sys
steps = 0
def step():
    global steps
    steps += 1
    if steps == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
{STEPS}
from apr.cli import main
sys.exit(main(sys.argv[2:]))
"""

# Kills the process at the n-th thing that it does to the file system, whatever that is.
KILLED_AT_EVENT = f"""
import os, signal, sys
from apr.cli import main
import apr.data.rebuild, tempfile
steps = 0
def step():
    global steps
    steps += 1
    if steps == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
{STEPS}
def hook(event, arguments):
    if event in {{"open", "os.rename", "os.remove", "os.truncate", "os.listdir", "os.scandir"}}:
        step()
sys.addaudithook(hook)
sys.exit(main(sys.argv[2:]))
"""
