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
