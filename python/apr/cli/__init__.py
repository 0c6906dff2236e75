"""The `apr` command line: `main` runs `apr ARGV`, `run` runs one command by its name."""

from apr.cli.main import main, run

__all__ = ["main", "run"]
