"""`python -m apr.contracts …` runs `apr contracts …`."""

import sys

# The one import that points up, from a library to the command line: Python looks for the program of
# `python -m apr.contracts` only here.
from apr.cli import run

sys.exit(run("contracts"))
