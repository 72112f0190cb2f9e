"""Map a region whose scenes lie in one folder, in jobs of SLURM (or whatever the YAML file says), and sum up what is there.

    python pipelines/region_slurm.py SCENES OUT [CLUSTER] [MODEL]

CLUSTER is configs/cluster/slurm.yaml unless given; ``here`` or ``local:2`` try it out without SLURM. Stopped and given again,
it does what is left. OUT/region.csv then holds the area of each class over all scenes, which count twice where they overlap.
Exit status 3 if any scene failed.
"""

import csv
import json
import sys
from collections import Counter
from pathlib import Path

from geoseg import GeosegError
from geoseg.cluster import Cluster
from geoseg.verbs.batch import Settings, batch, status

SLURM = Path(__file__).parents[1] / "configs" / "cluster" / "slurm.yaml"


def main(folder: Path, out: Path, cluster: str = str(SLURM), model: str = "default") -> int:
    """Predict the scenes of a folder and sum up their classes; returns how many are not done."""
    count = batch(sorted(folder.glob("*.tif")), out=out, settings=Settings(model=model), cluster=Cluster.of(cluster), watch=show)
    pixels: Counter[str] = Counter()
    areas: dict[str, float] = {}
    for row in status(out):
        if row["state"] != "done":
            print(f"{row['state']:<12} {row['reason']}")
            continue
        manifest = json.loads((out / f"{Path(row['scene']).stem}.manifest.json").read_text(encoding="utf-8"))
        for name, facts in manifest["classes"].items():
            pixels[name] += facts["pixels"]
            areas[name] = areas.get(name, 0.0) + (facts["area_m2"] or 0.0)
    with (out / "region.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["class", "pixels", "area_m2"])
        table.writerows((name, pixels[name], round(areas[name], 1)) for name in pixels)
    return sum(count.values()) - count["done"]


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
