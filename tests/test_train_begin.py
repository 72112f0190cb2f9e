"""A network that begins with another model's weights begins with its answers, whatever the order of classes and bands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from geoseg.card import ModelCard
from geoseg.errors import CardError, OptionsError
from geoseg.legend import Legend
from geoseg.networks import build, find
from geoseg.training.begin import begin_with
from geoseg.training.recipe import read_options
from geoseg.verbs.train import train
from tests.oracles import model_folder
from tests.test_cli import geoseg
from tests.toys import toy_data, toy_recipe

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*treespec.*"),
]
BANDS = ("red", "green", "blue", "nir", "height")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("base") / "base")


def begun(base: Path, bands: tuple[str, ...], titles: list[str]) -> torch.nn.Module:
    """The base's network for other bands and classes."""
    card, legend = ModelCard.read(base)[0], Legend.from_titles("other", titles)

    def make(bands: int, classes: int) -> torch.nn.Module:
        return build(card.architecture, bands, classes, **card.options)

    network = make(len(bands), len(legend))
    facts = (card.architecture, card.options, bands, legend)
    begin_with(network, str(base), *facts, make=make, defaults=find(card.architecture).options)
    return network.eval()


@settings(max_examples=15)
@given(st.data())
def test_common_classes_have_the_answers_that_they_had(base: Path, data: st.DataObject):
    card, weights = ModelCard.read(base)
    names = [c.name for c in card.legend.classes]
    titles = data.draw(st.lists(st.sampled_from([*names, "pool", "road"]), min_size=1, max_size=6, unique=True))
    bands = tuple(data.draw(st.permutations([*card.bands, *data.draw(st.sets(st.sampled_from(BANDS[3:])))])))
    old = build(card.architecture, 3, len(names), **card.options).eval()
    old.load_state_dict(load_file(weights))
    pixels = torch.randn(1, len(bands), 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        new = begun(base, bands, titles)(pixels)
        expected = old(pixels[:, [bands.index(band) for band in card.bands]])
    for channel, title in enumerate(titles):
        if title in names:
            torch.testing.assert_close(new[:, channel], expected[:, names.index(title)], rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused(base: Path, tmp_path: Path):
    with pytest.raises(OptionsError, match="no band in common"):
        begun(base, ("nir",), ["building"])
    recipe = toy_recipe(toy_data(tmp_path), steps=1) | {"init": str(base)}
    with pytest.raises(OptionsError, match="has the option decoder_channels"):
        train(recipe, tmp_path / "out")
    with pytest.raises(OptionsError, match="is a 'unet', the recipe makes a 'linknet'"):
        train(recipe | {"model": recipe["model"] | {"architecture": "linknet", "options": {}}}, tmp_path / "other")
    with pytest.raises(CardError, match="no such folder, and no model of that name"):
        train(recipe | {"init": "nowhere"}, tmp_path / "other")
    with pytest.raises(OptionsError, match="init and encoder_weights are both given"):
        read_options(recipe, encoder_weights="imagenet")


def test_a_short_recipe_fine_tunes_with_another_legend(tmp_path: Path):
    """Made by hand: the base knows buildings and vegetation; the town knows roofs that it calls buildings, and water."""
    data = toy_data(tmp_path / "data")
    base = train(toy_recipe(data, steps=20), tmp_path / "base")
    table = yaml.safe_load((data / "toy" / "set.yaml").read_text())
    table["codes"] = {2: {"name": "building", "allowed": ["building"]}, 3: {"name": "meadow", "allowed": ["meadow"]}}
    (data / "toy" / "set.yaml").write_text(yaml.safe_dump(table))
    (tmp_path / "town.yaml").write_text(
        yaml.safe_dump({"name": "town", "classes": [_class(1, "meadow", "#00ff00"), _class(2, "building", "#ff0000")]})
    )
    recipe = {
        "model": {"name": "my-town", "legend": str(tmp_path / "town.yaml")},
        "data": str(data),
        "sources": [{"set": "toy"}],
        "validation": [{"name": "toy", "set": "toy"}],
        "chips": {"size": 32, "batch": 2},
        "schedule": {"max_steps": 1, "validate_every": 1, "learning_rate": 1e-9},
    }
    (tmp_path / "tune.yaml").write_text(yaml.safe_dump(recipe))
    done = geoseg("train", tmp_path / "tune.yaml", "--init", tmp_path / "base", "--out", tmp_path / "tuned")
    assert done.returncode == 0, done.stderr
    assert "1 of 2 classes taken over, fresh: meadow" in done.stderr
    card, weights = ModelCard.read(tmp_path / "tuned")
    assert card.training_data[0] == f"fine-tuned from: toy 0, sha256 {base.sha256}"
    assert card.training_data[1:-1] == base.training_data
    assert (card.name, card.description, card.license) == ("my-town", "toy 0, fine-tuned.", base.license)
    assert (card.options, card.bands, card.scaling, card.resolution_m) == (base.options, base.bands, base.scaling, base.resolution_m)
    old, new = load_file(tmp_path / "base" / "model.safetensors"), load_file(weights)
    head = "segmentation_head.0.weight"
    torch.testing.assert_close(new[head][1], old[head][1], rtol=0, atol=1e-4)
    assert not np.allclose(new[head][0], old[head][0], atol=1e-2)


def test_options_that_are_not_said_are_the_models(base: Path, tmp_path: Path):
    recipe = {"init": str(base), "data": str(tmp_path), "sources": [{"set": "a"}], "validation": [{"name": "a", "set": "a"}]}
    card = ModelCard.read(base)[0]
    options = read_options(recipe | {"model": {"name": "mine", "bands": ["blue", "red"]}})
    assert options.model.scaling.mean == (card.scaling.mean[2], card.scaling.mean[0])
    assert options.model.classes() == card.legend
    assert options.schedule.max_steps > 0
    with pytest.raises(OptionsError, match=r"model\.scaling: Field required"):
        read_options(recipe | {"model": {"name": "mine", "bands": ["red", "nir"]}})
    with pytest.raises(OptionsError, match=r"model\.name: Field required"):
        read_options(recipe)


def _class(number: int, name: str, colour: str) -> dict[str, object]:
    return {"id": number, "name": name, "title": name.title(), "colour": colour}
