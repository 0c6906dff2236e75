"""`python -m apr.repair_manifest …` is `apr repair-manifest …`."""

import sys

if __name__ == "__main__":
    from apr.cli import run

    sys.exit(run("repair-manifest"))
