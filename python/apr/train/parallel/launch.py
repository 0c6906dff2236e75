"""`apr pretrain --gpus N`: the command in N processes on this host, started by torch's elastic launcher."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING
from uuid import uuid4

from apr.errors import EXIT_UNFORESEEN, UnavailableError
from apr.plurals import counted

if TYPE_CHECKING:
    from collections.abc import Sequence


def check_gpus(count: int) -> None:
    """Check that this host has so many GPUs.

    Raises:
        UnavailableError: it has fewer.
    """
    import torch

    found = torch.cuda.device_count()
    if found < count:
        raise UnavailableError(
            f"--gpus {count}: {counted(found, 'GPU')} found; use --gpus {found}, or --device cpu for "
            "processes on the CPU"
            if found
            else f"--gpus {count}: no GPU found; add --device cpu for processes on the CPU"
        )


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `apr pretrain ARGUMENTS` in several processes that train together, and return the exit code.

    Ctrl-C and SIGTERM are passed on to them; they save and end.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from apr.train.machine.device import available_cpus

    # As torchrun --standalone does: any free port of this host.
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    # The processes share the CPUs. Without this, each would start as many threads as there are.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cpus() // processes)))
    # What ended the run is printed by the run itself; the launcher's report of each process is not.
    logging.disable(logging.ERROR)
    try:
        elastic_launch(config, sys.executable)("-m", "apr.pretrain", *arguments)
    except ChildFailedError as failed:
        codes = [failure.exitcode for _, failure in sorted(failed.failures.items())]
        # Negative: a signal ended the process, as the kernel does when memory runs out.
        return next((code for code in codes if code > 0), EXIT_UNFORESEEN)
    except SignalException as stopped:
        # As shells report it, and as the run itself records it.
        return 128 + stopped.sigval
    return 0
