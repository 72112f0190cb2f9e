"""What a few labelled chips of a new site are worth: fine-tuning beside training from scratch, with the same chips.

    python pipelines/few_chips.py OUT SET:PART [CHIPS [DRAWS [CLASS]]]

A SET is a folder with images, labels and a set.yaml; none of its images may have been learnt from before. In each draw, CHIPS of its
images that hold CLASS (5, of the class `building`) are learnt from, once beginning with the default model and once with random weights,
for as many steps; all other images are scored. Printed are the IoU of CLASS of both, and at the end the mean
difference of the two over DRAWS (5) draws with its interval of 95 % (Student's t).
"""

import sys
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import yaml
from scipy.stats import t as student

import geoseg
from geoseg.datasets import LabelledSet
from geoseg.legend import ISPRS
from geoseg.models import locate, read

STEPS = 80
NAME = "site"


def main(out: Path, words: str, chips: int = 5, draws: int = 5, wanted: str = "building") -> list[dict[str, float]]:
    """The IoU of each way in each draw."""
    folder, _, part = words.partition(":")
    labelled, facts = LabelledSet.read(folder, ISPRS), yaml.safe_load((Path(folder) / "set.yaml").read_text(encoding="utf-8"))
    images = labelled.select(part or "val")
    codes = np.flatnonzero((labelled.allowed.sum(1) == 1) & labelled.allowed[:, [c.name for c in ISPRS.classes].index(wanted)])
    holders = [image.name for image in images if np.isin(np.asarray(image.read()[1]), codes).mean() > 0.05]
    rows = []
    for draw in range(draws):
        learnt = sorted(np.random.default_rng(draw).choice(holders, chips, replace=False).tolist())
        root = out / f"draw_{draw}"
        (root / NAME).mkdir(parents=True, exist_ok=True)
        for each in ("images", "labels"):
            if not (link := root / NAME / each).exists():
                link.symlink_to((Path(folder) / each).resolve())
        split = {"train": learnt, "val": [image.name for image in images if image.name not in learnt]}
        (root / NAME / "set.yaml").write_text(yaml.safe_dump(facts | {"split": split}))
        rows.append({way: geoseg.train(recipe, root / way).scores[NAME]["iou"][wanted] for way, recipe in recipes(root).items()})
        print(f"draw {draw}: " + ", ".join(f"{way} {iou:.3f}" for way, iou in rows[-1].items()), flush=True)
    gains = [row["tuned"] - row["scratch"] for row in rows]
    spread = student.ppf(0.975, draws - 1) * stdev(gains) / draws**0.5
    print(f"fine-tuning over scratch: {mean(gains):+.3f} [{mean(gains) - spread:+.3f}, {mean(gains) + spread:+.3f}]")
    return rows


def recipes(root: Path) -> dict[str, dict]:
    """Of each way; beside its learning rate, where it begins is all that differs."""
    held = {"name": NAME, "set": NAME}
    schedule = {"max_steps": STEPS, "validate_every": STEPS, "average": 0.95}
    chips = {"size": 256, "batch": 8, "scale": [0.8, 1.25], "brightness": 0.2, "colour": 0.05, "gamma": 0.2, "contrast": 0.2}
    base = {"data": str(root), "sources": [{"set": NAME}], "validation": [held], "chips": chips, "precision": "auto"}
    card = read(locate("default"))[0]
    facts = {key: getattr(card, key) for key in ("architecture", "options", "resolution_m", "tile", "overlap", "license")}
    facts |= {"name": "scratch", "version": "0", "description": "From a few chips.", "scaling": card.scaling.model_dump()}
    return {
        "tuned": base | {"init": "default", "model": {"name": "tuned"}, "schedule": schedule | {"learning_rate": 0.0005}},
        "scratch": base | {"model": facts, "schedule": schedule | {"learning_rate": 0.002}},
    }


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 6:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:5]), *sys.argv[5:])
