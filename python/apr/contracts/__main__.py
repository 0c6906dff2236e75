"""`python -m apr.contracts …` is `apr contracts …`."""

import sys

from apr.cli import run

sys.exit(run("contracts"))
