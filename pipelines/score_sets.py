"""Score a model on the held-out images of labelled sets, through `geoseg predict` and `geoseg evaluate`, all together and site by site.

    python pipelines/score_sets.py OUT MODEL SET...

A SET is a folder with images, labels and a set.yaml, as `geoseg train` takes it; FOLDER:PART for another part than `val`. Its pictures
are copied into GeoTIFFs with their pixel size. A site is the part of a name before its first number. For each set there is
OUT/NAME.json with all figures; what is printed is the IoU of each class with its interval of 95 % over images.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import rasterio

import geoseg
from geoseg.datasets import LabelledImage, LabelledSet
from geoseg.legend import ISPRS


def copied(image: LabelledImage, folder: Path) -> Path:
    """An image and its labels as GeoTIFFs somewhere on Earth."""
    for part, picture in zip(("images", "labels"), image.read(), strict=True):
        bands = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)
        place = rasterio.Affine(image.gsd_m, 0, 500_000, 0, -image.gsd_m, 3_000_000)
        profile = {"driver": "GTiff", "dtype": "uint8", "count": len(bands), "height": bands.shape[1], "width": bands.shape[2]}
        path = folder / part / f"{image.name}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(path, "w", **profile, crs="EPSG:32631", transform=place, compress="deflate") as file:
            file.write(bands)
    return folder / "images" / f"{image.name}.tif"


def line(title: str, facts: dict) -> str:
    """The scores of one group of images, in one line."""
    between = (facts["intervals"] or {"classes": {}, "measures": {}, "level": 0})["classes"]
    figures = [f"{title:<28} {len(facts['scenes']):>3}  mIoU {facts['measures']['miou'] or float('nan'):.3f}"]
    for name, of_class in facts["classes"].items():
        if of_class["iou"] is not None:
            low, high = between.get(name, {}).get("iou") or (float("nan"), float("nan"))
            figures.append(f"{name} {of_class['iou']:.3f} [{low:.2f}, {high:.2f}]")
    return "  ".join(figures)


def main(out: Path, model: str, sets: list[str]) -> dict[str, dict]:
    """Figures of each set and site."""
    found = {}
    for words in sets:
        folder, _, part = words.partition(":")
        labelled = LabelledSet.read(folder, ISPRS)
        name = f"{labelled.name}-{part}" if part else labelled.name
        sites, place = defaultdict(list), out / name
        for image in labelled.select(part or "val"):
            scene = copied(image, place)
            geoseg.predict(scene, model, out=place / "maps", vectors=False, quicklook=False)
            pair = (place / "maps" / f"{image.name}_classes.tif", place / "labels" / scene.name)
            for site in ("all", re.split(r"_?\d", image.name)[0]):
                sites[site].append(pair)
        for site, pairs in sites.items():
            table = place / f"{site}.csv"
            table.write_text("\n".join(["prediction,reference", *(f"{one.resolve()},{two.resolve()}" for one, two in pairs)]))
            facts = geoseg.evaluate(table, codes=Path(folder) / "set.yaml", legend="isprs")
            found[f"{name} {site}"] = facts
            print(line(f"{name} {site}", facts), flush=True)
        own = {key: facts for key, facts in found.items() if key.startswith(f"{name} ")}
        (out / f"{name}.json").write_text(json.dumps(own, ensure_ascii=False))
    return found


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
