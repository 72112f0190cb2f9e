"""The legends that ship as YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from geoseg import networks
from geoseg.legend import ISPRS, Legend
from geoseg.networks import maskrcnn
from geoseg.options import read_table
from geoseg.training.recipe import read_options

LEGENDS = Path(__file__).parents[1] / "configs" / "legends"
RECIPES = [  # those for instances have other keys, and a test where they are trained
    path for path in sorted((LEGENDS.parent / "train").glob("*.yaml")) if read_table(path)["model"]["architecture"] not in maskrcnn.names()
]


def test_the_isprs_file_says_what_the_code_says() -> None:
    assert Legend.from_yaml(LEGENDS / "isprs.yaml") == ISPRS


@pytest.mark.parametrize("path", sorted(LEGENDS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_legend_can_be_read_and_is_named_as_its_file(path: Path) -> None:
    assert Legend.from_yaml(path).name == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_can_be_read_and_its_network_is_built(path: Path, tmp_path: Path) -> None:
    options = read_options(path, tmp_path)
    model = options.model
    legend = Legend.from_yaml(LEGENDS / f"{Path(str(model.legend)).stem}.yaml")
    with torch.device("meta"):  # no weights are made
        network = networks.build(model.architecture, len(model.bands), len(legend), **model.options)
    assert sum(p.numel() for p in network.parameters()) > 1e6
    assert options.chips.size % network.stride == 0
    assert len(options.model.bands) == len(options.model.scaling.mean)
    assert {held.set for held in options.validation} <= {source.set for source in options.sources}
    seen = {(source.data, source.keep, source.drop) for source in options.sources if source.part == "train"}
    for held in options.validation:
        if held.part == "train":
            assert (held.data, ("*",), held.keep) in seen or any(held.keep[0] in drop for _, _, drop in seen)


def test_a_recipe_may_stand_on_another() -> None:
    base, recipe = (read_table(LEGENDS.parent / "train" / f"{name}.yaml") for name in ("potsdam", "potsdam-fcn8s"))
    assert recipe["model"] == base["model"] | {key: recipe["model"][key] for key in ("name", "description", "architecture", "options")}
    assert (recipe["model"]["options"], recipe["chips"]["size"], recipe["chips"]["batch"]) == ({}, 512, 20)
    assert recipe["sources"] == base["sources"]
    assert "base" not in recipe
