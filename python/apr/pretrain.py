"""`python -m apr.pretrain …` is `apr pretrain …`."""

import sys

from apr.cli import run

if __name__ == "__main__":
    sys.exit(run("pretrain"))
