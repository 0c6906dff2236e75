"""`python -m apr.tokenize …` is `apr tokenize …`."""

import sys

from apr.cli import run

if __name__ == "__main__":
    sys.exit(run("tokenize"))
