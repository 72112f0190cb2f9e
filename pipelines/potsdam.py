"""ISPRS Potsdam from the published folder to a table: train on the official training tiles, map the test tiles, compare.

    python pipelines/potsdam.py POTSDAM OUT [RECIPE]

POTSDAM holds the unpacked 2_Ortho_RGB and 5_Labels_all; RECIPE is configs/train/potsdam.yaml unless given. Figures follow the
contest: means over five classes, objects of the reference eroded by three pixels. Stopped and given again, it goes on where it was;
all figures are in OUT/scores.json.
"""

import csv
import json
import sys
from pathlib import Path

import geoseg
from geoseg.datasets import read_set
from geoseg.legend import ISPRS
from geoseg.training.recipe import read_options

RECIPE = Path(__file__).parents[1] / "configs" / "train" / "potsdam.yaml"


def main(folder: Path, out: Path, recipe: str = str(RECIPE)) -> None:
    """Train, predict, evaluate, print."""
    bands = read_options(recipe, folder).model.bands
    tiles = read_set(folder, "potsdam", ISPRS, bands).select("test")  # before hours of training: are they there?
    model = out / "model"
    if not (model / "model.json").exists():
        geoseg.train(recipe, model, data=folder)
    with (out / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        pairs = csv.writer(file)
        pairs.writerow(["prediction", "reference"])
        for number, tile in enumerate(tiles, 1):
            image = tile.layers[0]
            geoseg.predict(image.path, model, out=out / "maps", bands=image.indexes, vectors=False, quicklook=False)
            pairs.writerow([(out / "maps" / f"{image.path.stem}_classes.tif").resolve(), tile.labels.path.resolve()])
            print(f"{number} of {len(tiles)} test tiles mapped: {tile.name}")
    facts = geoseg.evaluate(out / "pairs.csv", protocol="isprs-eroded")
    (out / "scores.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
    table(facts)


def table(facts: dict) -> None:
    """Print IoU and F1 of the classes and the means."""
    print(f"\n{facts['protocol']}: {facts['protocol_says']}")
    print(f"{'class':<22}{'IoU':>8}{'F1':>8}")
    for figures in facts["classes"].values():
        note = "" if figures["in_means"] else "  (not in the means)"
        print(f"{figures['title']:<22}{percent(figures['iou'])}{percent(figures['f1'])}{note}")
    means = facts["measures"]
    print(f"{'mean':<22}{percent(means['miou'])}{percent(means['mean_f1'])}")
    print(f"{'overall accuracy':<22}{percent(means['pixel_accuracy'])}")


def percent(value: float | None) -> str:
    """A share in percent, or that it is not defined."""
    return f"{'-':>8}" if value is None else f"{100 * value:8.2f}"


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
    except geoseg.GeosegError as error:
        sys.exit(f"error: {error}")
