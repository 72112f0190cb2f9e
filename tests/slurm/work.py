"""What tests have workers do; imported by them, and light, so that they start soon."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import psutil


def look_around(_: int) -> tuple[str | None, str | None, int, frozenset[str]]:
    """The job we are in, its threads, those of Dask, and the addresses at which its processes listen."""
    from distributed import get_worker

    time.sleep(0.3)
    nanny = psutil.Process().parent()
    family = [nanny, *nanny.children(recursive=True)]
    heard = {link.laddr.ip for process in family for link in process.net_connections("inet") if link.status == psutil.CONN_LISTEN}
    return os.environ.get("SLURM_JOB_ID"), os.environ.get("OMP_NUM_THREADS"), get_worker().state.nthreads, frozenset(heard)


def cancel_once(work: tuple[int, str]) -> int:
    """Have the job cancelled in which the fourth call is, the first time."""
    number, folder = work
    time.sleep(0.2)
    marker = Path(folder) / "cancelled"
    if number == 3 and not marker.exists():
        marker.touch()
        subprocess.run(["scancel", os.environ["SLURM_JOB_ID"]], check=True)
        time.sleep(60)
    return number


def gpu(_: int) -> str | None:
    time.sleep(0.3)
    return os.environ.get("CUDA_VISIBLE_DEVICES")
