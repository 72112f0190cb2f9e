"""A toy to train on: data and recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image


def toy_data(folder: Path, names: Sequence[str] = "abc") -> Path:
    """A set in which buildings are red, low vegetation is green, and some pixels are only known not to be buildings; returns its folder."""
    root = folder / "toy"
    codes = {
        2: {"name": "building", "allowed": ["building"]},
        3: {"name": "low vegetation", "allowed": ["low vegetation"]},
        10: {"name": "not building", "allowed": ["impervious", "low vegetation", "tree", "car", "clutter"]},
    }
    split = {"train": list(names[:-1]), "val": list(names[-1:])}
    table = {"title": "Toy", "licence": "CC0", "attribution": "nobody", "gsd_m": 0.2, "codes": codes, "split": split}
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    (root / "set.yaml").write_text(yaml.safe_dump(table))
    for name in names:
        labels = np.where(np.kron(rng.integers(0, 2, (6, 6)), np.ones((12, 12))) > 0, 2, 3).astype(np.uint8)
        pixels = np.where((labels == 2)[..., None], (200, 60, 60), (60, 180, 60)) + rng.integers(-20, 20, (72, 72, 3))
        labels[:10] = np.where(labels[:10] == 3, 10, 0)
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"{name}.png")
        Image.fromarray(labels).save(root / "labels" / f"{name}.png")
    return folder


def toy_recipe(data: Path, steps: int = 6, **schedule: Any) -> dict[str, Any]:
    """A recipe of a tiny U-Net for it."""
    scaling = {"dtype": "uint8", "low": 0, "high": 255, "percentiles": [2, 98], "mean": [0.4, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}
    return {
        "data": str(data),
        "model": {
            "name": "toy",
            "version": "0",
            "description": "A toy.",
            "architecture": "unet",
            "options": {"encoder_name": "tu-resnet10t", "encoder_depth": 3, "decoder_channels": [16, 16, 16]},
            "scaling": scaling,
            "resolution_m": 0.2,
            "tile": 64,
            "overlap": 16,
            "license": "CC0-1.0",
        },
        "sources": [{"set": "toy"}],
        "chips": {"size": 32, "batch": 4, "scale": [0.8, 1.2]},
        "schedule": {"max_steps": steps, "validate_every": 3, "learning_rate": 0.003, "average": 0.5} | schedule,
        "validation": [{"name": "toy", "set": "toy"}],
        "workers": 0,
    }
