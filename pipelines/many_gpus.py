"""Map the scenes of a folder on all GPUs of this machine, one process for each, and say how fast it went.

    python pipelines/many_gpus.py SCENES OUT [MODEL] [CLUSTER]

Without a GPU it refuses. CLUSTER ``local:2`` tries it out in two processes on the CPU. One bad scene stops nothing; stopped and given
again, it does what is left. Exit status 3 if any scene failed.
"""

import sys
import time
from collections import Counter
from pathlib import Path

from geoseg import Cluster, GeosegError, Settings, batch
from geoseg.verbs.batch import status


def main(folder: Path, out: Path, model: str = "default", cluster: str = "cuda") -> int:
    """Predict the scenes of a folder; returns how many are not done."""
    began, done_before = time.monotonic(), len([row for row in rows(out) if row["state"] == "done"])
    count = batch(sorted(folder.glob("*.tif")), out=out, settings=Settings(model=model), cluster=Cluster.of(cluster), watch=show)
    seconds = time.monotonic() - began
    for row in rows(out):
        if row["state"] != "done":
            print(f"{row['state']:<12} {row['scene']}: {row['reason']}")
    pixels = sum(row["megapixels"] or 0 for row in rows(out) if row["state"] == "done")
    print(f"{count['done']} scenes, {pixels:.1f} megapixels; {count['done'] - done_before} of them now, in {seconds:.0f} s on {cluster}")
    return sum(count.values()) - count["done"]


def rows(out: Path) -> list[dict]:
    """The batch's table; empty before it began."""
    return status(out) if out.is_dir() and any(out.glob("*.sqlite")) else []


def show(count: Counter[str], megapixels: float) -> None:
    """Say how far we are."""
    print(", ".join(f"{number} {state}" for state, number in sorted(count.items())), f"({megapixels:.0f} Mpx)")


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 5:
        sys.exit(__doc__)
    try:
        left = main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
    except GeosegError as error:
        sys.exit(f"error: {error}")
    sys.exit(3 if left else 0)
