"""Where every label leaves several classes open, all of them are still learnt."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from geoseg.legend import ISPRS
from geoseg.losses import PartialLabelLoss, balanced_weights
from geoseg.verbs.train import train
from tests.toys import toy_recipe

K = 4
NOT_ONE = ~torch.eye(K, dtype=torch.bool)
TWO = torch.zeros(K * (K - 1) // 2, K, dtype=torch.bool)
for row, pair in enumerate(itertools.combinations(range(K), 2)):
    TWO[row, list(pair)] = True
ALLOWED = torch.cat([torch.zeros(1, K, dtype=torch.bool), NOT_ONE, TWO])
"""Code 0 is unlabelled, then "not X" of each class, then "X or Y" of each pair."""


def scenes(generator: torch.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy pixels (N, 3, 24, 24), their classes, and a code that allows the class, one at random for each cell of 6 x 6 pixels."""
    classes = torch.randint(0, K, (count, 4, 4), generator=generator)
    colours = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0.6, 0.6, 0.6]])
    fits = ALLOWED[:, classes].permute(1, 2, 3, 0).float()  # (N, 4, 4, C)
    codes = torch.multinomial(fits.flatten(0, 2), 1, generator=generator).reshape(classes.shape)
    classes, codes = (each.repeat_interleave(6, 1).repeat_interleave(6, 2) for each in (classes, codes))
    pixels = colours[classes].permute(0, 3, 1, 2)
    return pixels + 0.25 * torch.randn(pixels.shape, generator=generator), classes, codes


def test_all_classes_are_learnt_from_what_pixels_are_not_and_what_they_may_be():
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, K, 1))
    pixels, _, codes = scenes(generator, 16)
    assert not (ALLOWED[codes].sum(-1) == 1).any()
    shares = torch.bincount(codes.flatten(), minlength=len(ALLOWED)).double() / codes.numel()
    loss = PartialLabelLoss(ALLOWED, balanced_weights(shares, ALLOWED, power=0.5, ambiguous=0.5), push=False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.02)
    for _ in range(120):
        optimizer.zero_grad()
        loss(network(pixels), codes).backward()
        optimizer.step()
    pixels, classes, _ = scenes(generator, 16)
    with torch.inference_mode():
        found = network(pixels).argmax(1)
    for number in range(K):
        assert (found[classes == number] == number).float().mean() >= 0.95


@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
@pytest.mark.filterwarnings("ignore:.*treespec.*")
def test_training_learns_them_too(tmp_path: Path):
    """With the recipe's own settings; the labels of the held-out image are whole."""
    root = tmp_path / "data" / "toy"
    names = [c.name for c in ISPRS.classes][:K]
    sets = [*ALLOWED, *torch.eye(K, dtype=torch.bool)]
    codes = {code: {"name": str(code), "allowed": [names[k] for k in np.flatnonzero(allowed)]} for code, allowed in enumerate(sets)}
    split = {"train": [f"image_{number}" for number in range(24)], "val": ["held"]}
    table = {"title": "Toy", "licence": "CC0", "attribution": "nobody", "gsd_m": 0.2, "codes": codes, "split": split}
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    (root / "set.yaml").write_text(yaml.safe_dump(table))
    pixels, classes, partial = (each.numpy() for each in scenes(torch.Generator().manual_seed(2), 25))
    for number, name in enumerate([*split["train"], *split["val"]]):
        labels = classes[number] + len(ALLOWED) if name == "held" else partial[number]
        picture = (pixels[number].transpose(1, 2, 0) * 100 + 70).clip(0, 255)
        for part, array in (("images", picture), ("labels", labels)):
            Image.fromarray(array.astype(np.uint8)).resize((72, 72), Image.Resampling.NEAREST).save(root / part / f"{name}.png")
    made = train(toy_recipe(root.parent, steps=240, validate_every=240, average=0.9), tmp_path / "out")
    assert set(made.scores["toy"]["iou"]) == set(names)
    assert made.scores["toy"]["accuracy"] >= 0.95
