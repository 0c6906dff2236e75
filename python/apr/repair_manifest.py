"""`python -m apr.repair_manifest …` is `apr repair-manifest …`."""

import sys

from apr.data.missing_manifest import write_missing_manifest

if __name__ == "__main__":
    try:
        said = write_missing_manifest(sys.argv[1:])
    except OSError:  # the full command says what is wrong
        said = None
    if said is not None:
        print(said)
        sys.exit(0)
    from apr.cli import run

    sys.exit(run("repair-manifest"))
