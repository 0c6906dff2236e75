"""A process that dies at a moment of its own, for tests of what it leaves behind."""

# Kills the process at the n-th flush to the disk, which comes before and after every rename.
KILLED = """
import os, signal, sys
calls, fsync = 0, os.fsync
def counted(descriptor):
    global calls
    calls += 1
    if calls == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
os.fsync = counted
from apr.cli import main
sys.exit(main(sys.argv[2:]))
"""

# Kills the process at the n-th thing that it does to the file system, whatever that is.
KILLED_AT_EVENT = """
import os, signal, sys
from apr.cli import main
import apr.data.rebuild, tempfile
done = 0
def hook(event, given):
    global done
    if event in {"open", "os.rename", "os.remove", "os.truncate", "os.listdir", "os.scandir"}:
        done += 1
        if done == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
sys.exit(main(sys.argv[2:]))
"""
