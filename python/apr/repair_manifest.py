"""`python -m apr.repair_manifest …` is `apr repair-manifest …`."""

import sys


def _main() -> int:
    arguments = sys.argv[1:]
    if len(arguments) == 1 and not arguments[0].startswith("-"):
        # DIR alone is what people run over dozens of directories after their encoder died. It needs no parser
        # of flags, and importing that takes longer than the repair itself. If the repair fails, the command
        # below tries again and reports the error.
        from apr.data.rebuild import repair
        from apr.errors import AprError, RefusedError

        try:
            print(repair(arguments[0]))
        except (AprError, RefusedError, OSError):
            pass
        else:
            return 0
    from apr.cli import run

    return run("repair-manifest")


if __name__ == "__main__":
    sys.exit(_main())
