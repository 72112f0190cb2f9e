"""Draw polygons into the labels of a set, where these leave a class open: a set of its own, which shares the pictures of the first.

    python pipelines/draw_labels.py POLYGONS.yaml SET OUT

POLYGONS.yaml (`configs/labels` has one) says for each image which polygons lie on it, the last one on top: a class of the ISPRS
legend and the corners, x to the right and y down in pixels. A pixel gets the class if its label allows that class and others; what
is labelled as one class, or not at all, stays.
"""

import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw

from geoseg.datasets import LabelledSet
from geoseg.legend import ISPRS

CHANNELS = {c.name: channel for channel, c in enumerate(ISPRS.classes)}


def drawn(labels: np.ndarray, polygons: list, allowed: np.ndarray) -> np.ndarray:
    """Codes (H, W) with the polygons on them; of a class the code is its id."""
    picture = Image.new("L", labels.shape[::-1])
    pen = ImageDraw.Draw(picture)
    for name, corners in polygons:
        pen.polygon([tuple(corner) for corner in corners], fill=ISPRS.ids[CHANNELS[name]] if name != "ignore" else 0)
    ids = np.asarray(picture)
    channel = np.searchsorted(ISPRS.ids, ids).clip(max=len(ISPRS) - 1)
    open_here = (ids > 0) & (allowed.sum(1) > 1)[labels] & allowed[labels, channel]
    return np.where(open_here, ids, labels)


def main(polygons: Path, source: Path, out: Path) -> Path:
    """Make the set; returns its folder."""
    table = yaml.safe_load(polygons.read_text(encoding="utf-8"))
    labelled = LabelledSet.read(source, ISPRS)
    facts = yaml.safe_load((source / "set.yaml").read_text(encoding="utf-8"))
    for part in ("images", "labels"):
        (out / part).mkdir(parents=True, exist_ok=True)
    for name, shapes in table["images"].items():
        image = labelled.images[name]
        link = out / "images" / image.pixels.name
        link.unlink(missing_ok=True)
        link.symlink_to(image.pixels.resolve())
        codes = drawn(np.asarray(image.read()[1]), shapes, labelled.allowed)
        Image.fromarray(codes).save(out / "labels" / f"{name}.png")
    parts = {part: [name for name in names if name in table["images"]] for part, names in labelled.split.items()}
    facts |= {"title": table["title"], "licence": f"{table['licence']} (polygons); {labelled.licence} (all else)", "split": parts}
    facts["codes"] |= {c.id: {"name": c.title, "allowed": [c.title]} for c in ISPRS.classes}
    (out / "set.yaml").write_text(yaml.safe_dump(facts, allow_unicode=True), encoding="utf-8")
    return out


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
