"""Memory that conversions take, measured in a process of their own."""

import subprocess
import sys
from pathlib import Path

_CHILD = """
import sys
import gguf, numpy
from apr.convert import ConvertOptions, convert
def peak():
    return int(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmHWM")))
before = peak()
for source, target in zip(sys.argv[1:], sys.argv[2:]):
    convert(source, target, ConvertOptions(allow_mismatch=True))
print(peak() - before)
"""


def memory_of_conversions(*paths: Path) -> int:
    """kB by which the peak of resident memory, mapped pages among it, grows from path to path."""
    command = [sys.executable, "-c", _CHILD, *map(str, paths)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
