import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from geoseg.card import ModelCard
from geoseg.cli import app
from geoseg.datasets import read_set
from geoseg.errors import OptionsError, ResumeError
from geoseg.legend import ISPRS
from geoseg.networks import build
from geoseg.training import data as room
from geoseg.training.data import Data, HeldOut
from geoseg.training.recipe import read_options
from geoseg.verbs.train import train
from tests import layouts
from tests.test_cli import geoseg
from tests.toys import toy_data, toy_recipe

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*treespec.*"),
]
LEGENDS = Path(__file__).parents[1] / "configs" / "legends"
RECIPE = Path(__file__).parents[1] / "configs" / "train" / "default.yaml"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return toy_data(tmp_path / "data")


def test_a_model_folder_is_made_that_knows_its_task(data: Path, tmp_path: Path):
    out = tmp_path / "toy"
    made = train(toy_recipe(data, steps=20), out)
    card, weights = ModelCard.read(out)
    card.check(weights)
    assert card == made
    assert sorted(path.name for path in out.iterdir()) == ["model.json", "model.safetensors", "training"]
    tensors = load_file(weights)
    assert {t.dtype for t in tensors.values()} <= {torch.float16, torch.int64}
    network = build(card.architecture, len(card.bands), len(card.legend), **card.options)
    network.load_state_dict(tensors)
    assert (card.stride, card.parameters) == (8, sum(p.numel() for p in network.parameters()))
    assert set(card.scores["toy"]["iou"]) == {"building", "low_vegetation"}
    assert card.scores["toy"]["miou"] > 0.7
    assert "after 20 steps" in card.scores["measured"]
    assert card.training_data == ("toy (*): Toy. Licence: CC0. Attribution: nobody",)
    assert json.loads((out / "model.json").read_text())["mlm:name"] == "toy"


def test_a_stopped_run_goes_on_to_the_same_weights(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = train(toy_recipe(data), tmp_path / "whole")
    chip = room.Chips.__getitem__
    trained: list[int] = []

    def until(limit: int):
        def getitem(self, index):
            if self.seed == 0:
                trained.append(self.first + index)
                if self.first + index == limit:
                    raise RuntimeError("power cut")
            return chip(self, index)

        return getitem

    monkeypatch.setattr(room.Chips, "__getitem__", until(4))
    with pytest.raises(RuntimeError, match="power cut"):
        train(toy_recipe(data), tmp_path / "stopped")
    assert (tmp_path / "stopped" / "training" / "last.ckpt").exists()
    assert not (tmp_path / "stopped" / "model.json").exists()
    trained.clear()
    monkeypatch.setattr(room.Chips, "__getitem__", until(-1))
    resumed = train(toy_recipe(data), tmp_path / "stopped")
    assert trained == [3, 4, 5]
    assert "after 6 steps" in resumed.scores["measured"]
    assert resumed.sha256 == whole.sha256
    with pytest.raises(ResumeError, match="another recipe"):
        train(toy_recipe(data) | {"seed": 5}, tmp_path / "stopped")
    again = train(toy_recipe(data) | {"seed": 5}, tmp_path / "stopped", force=True)
    assert again.sha256 != whole.sha256


def test_the_clock_stops_a_run(data: Path, tmp_path: Path):
    recipe = toy_recipe(data, steps=10_000)
    recipe["schedule"]["max_minutes"] = 0.02
    assert "in 0 minutes" in train(recipe, tmp_path / "toy").scores["measured"]


@pytest.mark.slow
def test_the_auxiliary_head_is_trained_and_left_out(data: Path, tmp_path: Path):
    recipe = toy_recipe(data, steps=1)
    recipe["model"] |= {"architecture": "fcn_resnet50", "options": {}}
    recipe["chips"]["batch"] = 2
    train(recipe, tmp_path / "fcn")
    assert not any(key.startswith("aux") for key in load_file(tmp_path / "fcn" / "model.safetensors"))


def test_pretrained_weights_and_the_auxiliary_head(data: Path, tmp_path: Path):
    torch.manual_seed(0)
    encoder = torchvision.models.resnet18().state_dict()
    encoder["layer1.0.bn1.running_mean"] += 7.0
    torch.save(encoder, tmp_path / "resnet18.pth")
    recipe = toy_recipe(data, steps=1)
    recipe["model"] |= {"architecture": "pspnet", "options": {"encoder_name": "resnet18"}}
    recipe["schedule"] |= {"learning_rate": 1e-9, "average": 0.0}
    card = train(recipe, tmp_path / "with", encoder_weights=tmp_path / "resnet18.pth")
    tensors = load_file(tmp_path / "with" / "model.safetensors")
    torch.testing.assert_close(tensors["encoder.layer1.0.conv1.weight"].float(), encoder["layer1.0.conv1.weight"], rtol=1e-3, atol=1e-4)
    assert not any(key.startswith("aux") for key in tensors)
    assert "auxiliary" not in card.options
    assert card.training_data[0] == "encoder, at first: resnet18.pth"
    state = torch.load(tmp_path / "with" / "training" / "last.ckpt", weights_only=False)["state_dict"]
    assert any(key.startswith("network.aux_classifier.") for key in state)
    train(recipe | {"loss": {"auxiliary": 0}}, tmp_path / "without")
    state = torch.load(tmp_path / "without" / "training" / "last.ckpt", weights_only=False)["state_dict"]
    assert not any(key.startswith("network.aux_classifier.") for key in state)


def test_held_out_images_are_whole_and_filled(data: Path):
    options = read_options(toy_recipe(data))
    images = room.LabelledSet.read(data / "toy", ISPRS).select("val")
    pixels, labels = HeldOut(images, options.model, 32)[0]
    assert (pixels.shape, labels.shape) == ((3, 96, 96), (96, 96))
    assert (pixels[:, 72:] == 0).all()
    assert (labels[72:] == 0).all()
    assert (labels[10:72, :72] > 0).all()


def test_the_shipped_recipe_is_readable(tmp_path: Path):
    options = read_options(RECIPE, tmp_path)
    assert options.data == tmp_path
    assert not any("dubai" in source.set for source in options.sources)
    assert all("coarse_tile*" in s.drop for s in options.sources if s.set == "hand" and "coarse_*" in s.keep)


def test_odd_recipes_are_refused(data: Path, tmp_path: Path):
    with pytest.raises(OptionsError, match=r"'schedule.max_step'; did you mean 'max_steps'"):
        read_options(toy_recipe(data) | {"schedule": {"max_step": 3}})
    odd = toy_recipe(data)
    odd["model"]["options"] |= {"auxiliary": True}
    with pytest.raises(OptionsError, match=r"set loss.auxiliary"):
        read_options(odd)
    with pytest.raises(OptionsError, match=r"no encoder weights here"):
        train(toy_recipe(data) | {"encoder_weights": "nowhere.pth"}, tmp_path / "nothing")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(toy_recipe(data)))
    refused = geoseg("train", tmp_path / "recipe.yaml", "--out", tmp_path / "nothing", "--encoder-weights", "elsewhere.pth")
    assert refused.returncode == 2
    assert "elsewhere.pth: no encoder weights here" in refused.stderr
    with pytest.raises(OptionsError, match=r"data folder .* is not there"):
        read_options(toy_recipe(data), tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("layout", "bands", "legend"),
    [
        ("potsdam", ["red", "green", "blue"], "isprs"),
        ("vaihingen", ["nir", "red", "green", "ndsm"], "isprs"),
        ("spacenet", ["red", "green", "blue"], str(LEGENDS / "buildings.yaml")),
        ("loveda", ["red", "green", "blue"], str(LEGENDS / "loveda.yaml")),
        ("landcoverai", ["red", "green", "blue"], "isprs"),
        ("openearthmap", ["red", "green", "blue"], str(LEGENDS / "openearthmap.yaml")),
    ],
)
def test_published_layouts_are_trained_from(tmp_path: Path, layout: str, bands: list[str], legend: str):
    getattr(layouts, layout)(tmp_path / "data" / layout)
    recipe = toy_recipe(tmp_path / "data", steps=3)
    figures = {"mean": [0.4] * len(bands), "std": [0.2] * len(bands)}
    recipe["model"] |= {"bands": bands, "legend": legend, "scaling": recipe["model"]["scaling"] | figures, "resolution_m": 0.1}
    source = {"set": layout, "layout": layout}
    held = ["*3", "*_8", "urban_*", "N-33-*", "al_*"]
    recipe["sources"] = [source | {"drop": held}]
    recipe["validation"] = [{"name": "held", **source, "part": "train", "keep": held}]
    card = train(recipe, tmp_path / "out")
    assert card.bands == tuple(bands)
    assert card.scores["held"]["images"] > 0
    assert card.scores["held"]["iou"]
    assert "in windows of 64 pixels" in card.scores["measured"]
    assert card.training_data[0].startswith(f"{layout} (* without {', '.join(held)}): ")
    with pytest.raises(OptionsError, match="no part 'tset'"):
        train(recipe | {"validation": [{"name": "held", **source, "part": "tset"}]}, tmp_path / "other")


def test_large_held_out_scenes_come_in_windows(tmp_path: Path):
    layouts.potsdam(tmp_path, ("2_10",))
    options = read_options(toy_recipe(tmp_path))
    images = read_set(tmp_path, "potsdam", ISPRS, ("red", "green", "blue")).select("train")
    held = HeldOut(images, options.model.model_copy(update={"resolution_m": 0.05, "tile": 64}), 32)
    assert len(held) == 4
    labels = np.zeros((96, 96), np.uint8)
    for index, (row, col) in enumerate([(0, 0), (0, 64), (64, 0), (64, 64)]):
        pixels, codes = held[index]
        assert pixels.shape[1:] == codes.shape == (64 if row == 0 else 32, 64 if col == 0 else 32)
        labels[row : row + 64, col : col + 64] = codes
    assert np.array_equal(labels, layouts.quilt(0))
    coarse = HeldOut(images, options.model.model_copy(update={"resolution_m": 0.1, "tile": 64}), 32)
    assert [tuple(codes.shape) for _, codes in (coarse[i] for i in range(len(coarse)))] == [(64, 64)]


def test_sets_that_do_not_agree_are_refused(data: Path):
    table = yaml.safe_load((data / "toy" / "set.yaml").read_text())
    table["codes"][2]["allowed"] = ["tree"]
    shutil.copytree(data / "toy", data / "other")
    (data / "other" / "set.yaml").write_text(yaml.safe_dump(table))
    with pytest.raises(OptionsError, match="other: code 2 stands for other classes than in a set before it"):
        Data(read_options(toy_recipe(data) | {"sources": [{"set": "toy"}, {"set": "other"}]}), ISPRS, 8)


def test_labels_of_another_place_are_refused(data: Path):
    for name in "ab":
        Image.fromarray(np.zeros((72, 72), np.uint8)).save(data / "toy" / "labels" / f"{name}.png")
    with pytest.raises(OptionsError, match="toy: no pixel of 24 batches has a label"):
        Data(read_options(toy_recipe(data)), ISPRS, 8).shares()


def test_a_dry_run_shows_chips_beside_their_labels(data: Path, tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(toy_recipe(data)))
    done = CliRunner().invoke(app, ["train", str(recipe), "--out", str(tmp_path / "out"), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["chips.png"]
    with Image.open(tmp_path / "out" / "chips.png") as file:
        picture = np.asarray(file.convert("RGB")).astype(int)
    top = left = 24  # a chip of 32 pixels, its labels, a gap
    options = read_options(recipe)
    pixels, codes = Data(options, ISPRS, 1).chips(0, 1)[0]
    photo = picture[top : top + 32, left : left + 32]
    painted = picture[top : top + 32, left + 32 : left + 64]
    assert np.abs(photo - 255 * (pixels[0].permute(1, 2, 0).numpy() * 0.2 + [0.4, 0.4, 0.3]).clip(0, 1)).max() <= 1
    houses, several = codes[0].numpy() == 2, codes[0].numpy() == 10
    assert houses.any()
    assert np.abs(painted - (0.55 * np.array([0, 0, 255]) + 0.45 * photo))[houses].max() <= 1
    others = np.mean([c.rgb for c in ISPRS.classes if c.name != "building"], 0)
    assert np.abs(painted - others)[several].max(initial=0) <= 1


def test_a_recipe_may_sum_losses(data: Path, tmp_path: Path):
    recipe = toy_recipe(data, steps=3) | {"loss": {"terms": {"partial": 1.0, "dice": 0.5, "lovasz": 0.5}}}
    assert train(recipe, tmp_path / "sum").sha256 != train(toy_recipe(data, steps=3), tmp_path / "plain").sha256
    with pytest.raises(OptionsError, match=r"loss\.terms"):
        read_options(recipe | {"loss": {"terms": {"dcie": 1.0}}})
