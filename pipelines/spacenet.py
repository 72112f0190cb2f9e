"""SpaceNet footprints from the published folder to F1 at an IoU of 0.5: train (or take a model), map, draw buildings, compare.

    python pipelines/spacenet.py SPACENET OUT [RECIPE or MODEL]

SPACENET holds the images and GeoJSON labels of a building round. With a recipe (configs/train/spacenet.yaml unless given) a model is
trained, and the images that the recipe holds out are mapped; with the folder of a model, all images are. What is scored are the
polygons, as in the challenges. Stopped and given again, it goes on where it was; all figures are in OUT/scores.json.
"""

import csv
import json
import sys
from pathlib import Path

import geoseg
from geoseg.datasets import read_set
from geoseg.training.recipe import read_options

RECIPE = Path(__file__).parents[1] / "configs" / "train" / "spacenet.yaml"
OUTLINES = geoseg.Shaping(min_area_m2=5, simplify_m=0.5, regularize=("building",))


def main(folder: Path, out: Path, recipe_or_model: str = str(RECIPE)) -> None:
    """Train, predict, evaluate, print."""
    model, keep, drop = Path(recipe_or_model), ("*",), ()
    if model.suffix in (".yaml", ".yml"):
        held = read_options(model, folder).validation[0]
        recipe, model, keep, drop = model, out / "model", held.keep, held.drop
        if not (model / "model.json").exists():
            geoseg.train(recipe, model, data=folder)
    card, _ = geoseg.ModelCard.read(model)
    images = read_set(folder, "spacenet", card.legend, card.bands).select("train", keep, drop)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        pairs = csv.writer(file)
        pairs.writerow(["prediction", "reference"])
        for image in images:
            layer = image.layers[0]
            geoseg.predict(layer.path, model, out=out / "maps", bands=layer.indexes, shaping=OUTLINES, quicklook=False)
            if image.labels.path.stat().st_size:
                pairs.writerow([(out / "maps" / f"{layer.path.stem}_polygons.gpkg").resolve(), image.labels.path.resolve()])
            else:
                print(f"left out: {image.name}, its label file is empty")
    facts = geoseg.evaluate(out / "pairs.csv", class_name="building")
    (out / "scores.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
    print(f"{len(images)} images, {facts['protocol']}: {facts['protocol_says']}")
    for name in ("f1", "precision", "recall"):
        print(f"{name:<10}{facts['measures'][name]:.4f}")


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
    except geoseg.GeosegError as error:
        sys.exit(f"error: {error}")
