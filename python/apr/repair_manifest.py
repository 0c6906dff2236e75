"""`python -m apr.repair_manifest …` is `apr repair-manifest …`."""

import sys

from apr.cli import run

if __name__ == "__main__":
    sys.exit(run("repair-manifest"))
