"""Polygons on scenes become targets, and a Mask R-CNN learns from them what `predict` then finds."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.features
import safetensors.torch
import shapely
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg.average_precision import AveragePrecision
from geoseg.card import WEIGHTS_NAME, ModelCard
from geoseg.datasets.outlined import OutlinedScene
from geoseg.detector import Detector
from geoseg.engine import Options, detect_block, detecting_tiles, make_plan
from geoseg.errors import GeoreferenceError, OptionsError
from geoseg.instances import Instance, merge, overlaps
from geoseg.legend import Legend
from geoseg.networks.maskrcnn import Detections
from geoseg.scene import Scene
from geoseg.training.recipe import read_recipe
from geoseg.verbs.predict import predict
from geoseg.verbs.train import preview, train
from geoseg.verbs.train_instances import InstanceChips, InstanceOptions, Windows, judge
from geoseg.window import Window
from tests.conftest import make_scene

METRES = rasterio.Affine(1, 0, 354000, 0, -1, 3057000)
CONFIGS = Path(__file__).parents[1] / "configs"
LEGEND = CONFIGS / "legends" / "houses_and_cars.yaml"
BANDS = ("red", "green", "blue")


def painted(rng: np.random.Generator, shape: tuple[int, int], count: int) -> tuple[np.ndarray, list[tuple[shapely.Polygon, int]]]:
    """Red houses and green cars on grey noise, apart from each other: pixels (3, H, W), and their outlines with the label."""
    pixels = rng.normal(90, 12, (3, *shape))
    taken, things = np.zeros(shape, bool), []
    for turn in range(count):
        label = 1 + turn % 2
        height, width = rng.integers(26, 48, 2) if label == 1 else rng.integers(12, 18, 2)
        row, col = (int(rng.integers(0, full - part + 1)) for full, part in zip(shape, (height, width), strict=True))
        if taken[max(0, row - 4) : row + height + 4, max(0, col - 4) : col + width + 4].any():
            continue
        taken[row : row + height, col : col + width] = True
        pixels[label - 1, row : row + height, col : col + width] += 130
        things.append((shapely.box(col, row, col + width, row + height), label))
    return np.clip(pixels, 1, 255).astype(np.uint8), things


def written(folder: Path) -> Path:
    """A scene, and its polygons as GeoPackage with a layer for each class and as GeoJSON in degrees."""
    pixels, things = painted(np.random.default_rng(1), (256, 256), 40)
    folder.mkdir(exist_ok=True)
    make_scene(folder / "town.tif", pixels, transform=METRES, colours=BANDS)
    ground = [shapely.affinity.affine_transform(shape, [1, 0, 0, -1, 354000, 3057000]) for shape, _ in things]
    table = geopandas.GeoDataFrame(
        {"class_name": [("buildings", "cars")[label - 1] for _, label in things]}, geometry=ground, crs="EPSG:32645"
    )
    for name, part in table.groupby("class_name"):
        part.to_file(folder / "town.gpkg", layer=name)
    table.to_crs("EPSG:4326").to_file(folder / "town.geojson")
    table[table.class_name == "cars"].drop(columns="class_name").to_file(folder / "cars.gpkg")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return written(tmp_path / "data")


def recipe(data: Path, **schedule) -> dict:
    scaling = {"dtype": "uint8", "low": 0, "high": 255, "percentiles": [2, 98], "mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2]}
    town = {"scene": "town.tif", "polygons": "town.gpkg", "credit": "Town. Licence: CC0"}
    return {
        "data": str(data),
        "model": {
            "name": "toy",
            "version": "0",
            "description": "A toy.",
            "architecture": "maskrcnn_resnet50_fpn",
            "options": {"anchors": [16, 32, 64, 128, 256], "rois": 48},
            "scaling": scaling,
            "resolution_m": 1.0,
            "tile": 128,
            "overlap": 64,
            "legend": str(LEGEND),
            "license": "CC0-1.0",
        },
        "sources": [town],
        "chips": {"size": 128, "batch": 2},
        "schedule": {"max_steps": 2, "validate_every": 2, "learning_rate": 0.0005, "average": 0.0} | schedule,
        "validation": [town | {"name": "town"}],
        "workers": 0,
    }


def scene_of(data: Path, polygons: str = "town.gpkg", **facts) -> OutlinedScene:
    options = read_recipe(InstanceOptions, recipe(data))
    given = {"bands": options.model.bands, "resolution_m": 1.0} | facts
    return OutlinedScene.read(data / "town.tif", data / polygons, Legend.from_yaml(LEGEND), **given)


@settings(max_examples=25)
@given(
    st.integers(-60, 250), st.integers(-60, 250), st.integers(1, 120), st.integers(1, 120), st.sampled_from(["town.gpkg", "town.geojson"])
)
def test_a_window_shows_the_instances_that_are_painted(
    town: OutlinedScene, town_json: OutlinedScene, row: int, col: int, height: int, width: int, name: str
) -> None:
    scene = town if name == "town.gpkg" else town_json
    window = Window(row, col, height, width)
    pixels, valid, labels, masks = scene.cut(window)
    for label in (1, 2):
        shown = masks[labels == label].any(axis=0) if (labels == label).any() else np.zeros(window.shape, bool)
        painted_there = valid & (pixels[label - 1].astype(int) > 165)
        missing = painted_there & ~shown
        assert not (shown & ~painted_there).sum() > 0.01 * shown.sum() + 1
        # what is missing belongs to things that show fewer pixels than count
        count = rasterio.features.shapes(missing.astype(np.uint8), missing)
        assert all(shapely.geometry.shape(shape).area < 16 + 2 for shape, _ in count)
    assert masks.sum(axis=(1, 2)).min(initial=16) >= 16


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def town(shared: Path) -> OutlinedScene:
    return scene_of(shared)


@pytest.fixture(scope="module")
def town_json(shared: Path) -> OutlinedScene:
    return scene_of(shared, "town.geojson")


def test_chips_repeat_and_their_masks_lie_on_what_they_are_of(data: Path) -> None:
    options = read_recipe(InstanceOptions, recipe(data))
    chips = InstanceChips([scene_of(data)], options, first=3, count=6)
    seen = 0
    for number in range(6):
        pixels, targets = chips[number]
        again, _ = InstanceChips([scene_of(data)], options, first=3 + number, count=1)[0]
        torch.testing.assert_close(pixels, again)
        assert pixels.shape == (2, 3, 128, 128)
        for image, target in zip(pixels, targets, strict=True):
            for box, label, mask in zip(target["boxes"], target["labels"], target["masks"], strict=True):
                inside, seen = mask.bool(), seen + 1
                other = 2 - int(label)
                assert image[int(label) - 1][inside].mean() > image[other][inside].mean() + 1
                left, top, right, bottom = map(int, box)
                assert mask[top:bottom, left:right].sum() == mask.sum()
    assert seen > 10
    with pytest.raises(IndexError):
        chips[6]


class Perfect:
    """Answers the targets of a window; ``roi_heads`` is what `judge` sets the threshold of."""

    def __init__(self, targets: list[dict[str, torch.Tensor]], share: float = 1.0) -> None:
        self.targets, self.share, self.roi_heads = targets, share, self
        self.score_thresh, self.asked = 0.5, []

    def __call__(self, pixels: torch.Tensor) -> list[Detections]:
        self.asked.append(self.score_thresh)
        answers = []
        for target in self.targets:
            count = int(len(target["boxes"]) * self.share)
            scores, masks = torch.full((count,), 0.9), torch.ones(count, 28, 28)
            answers.append(Detections(target["boxes"][:count], target["labels"][:count], scores, masks))
        return answers


def test_judge_counts_every_window(data: Path) -> None:
    windows = Windows(scene_of(data), read_recipe(InstanceOptions, recipe(data)))
    assert len(windows) == 4
    for share, expected in ((1.0, 1.0), (0.0, 0.0)):
        precision = AveragePrecision()
        for number in range(len(windows)):
            network = Perfect(windows[number][1], share)
            judge(precision, network, windows[number], 2)  # type: ignore[arg-type]
            assert (network.asked, network.score_thresh) == ([0.05], 0.5)
        assert precision.summary()["ap50"] == pytest.approx(expected)


def test_odd_sources_are_refused(data: Path, tmp_path: Path) -> None:
    assert set(scene_of(data, "cars.gpkg", label="cars").labels) == {2}
    with pytest.raises(OptionsError, match="of no class; fill their column 'class_name', or name the class of all"):
        scene_of(data, "cars.gpkg")
    with pytest.raises(OptionsError, match="class 'car' is not in legend 'houses_and_cars'; did you mean 'cars'"):
        scene_of(data, "cars.gpkg", label="car")
    with pytest.raises(OptionsError, match=r"nowhere\.gpkg: no such file; expected polygons"):
        scene_of(data, "nowhere.gpkg")
    make_scene(data / "nowhere.tif", np.ones((3, 40, 40), np.uint8), crs=None, transform=METRES, colours=BANDS)
    with pytest.raises(GeoreferenceError, match="give the scene a CRS first"):
        OutlinedScene.read(data / "nowhere.tif", data / "town.gpkg", Legend.from_yaml(LEGEND), bands=BANDS, resolution_m=1.0)
    with pytest.raises(OptionsError, match=r"'chips.sise'; did you mean 'size'"):
        read_recipe(InstanceOptions, recipe(data) | {"chips": {"sise": 3}})
    with pytest.raises(OptionsError, match="is not there; name the folder"):
        train(recipe(data), tmp_path / "out", data=tmp_path / "nowhere")
    with pytest.raises(OptionsError, match="no encoder weights here"):
        train(recipe(data), tmp_path / "out", encoder_weights=data / "resnet50.pth")
    with pytest.raises(OptionsError, match="leave --dry-run out"):
        preview(recipe(data), tmp_path / "out")
    make_scene(data / "town.tif", np.ones((3, 40, 40), np.uint16), transform=METRES, colours=BANDS)
    with pytest.raises(OptionsError, match="is uint16, the recipe's scaling is for uint8"):
        train(recipe(data), tmp_path / "out")


def test_the_recipe_of_the_repository_is_readable(tmp_path: Path) -> None:
    assert read_recipe(InstanceOptions, CONFIGS / "train" / "instances.yaml", tmp_path).model.architecture == "maskrcnn_resnet50_fpn_v2"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
@pytest.mark.filterwarnings("ignore:.*treespec.*")
def test_a_training_begins_with_pretrained_weights(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = torchvision.models.resnet50().state_dict()
    torch.save(state, tmp_path / "resnet50.pth")
    made = train(recipe(data, max_steps=1, validate_every=1, learning_rate=1e-9), tmp_path / "m", encoder_weights=tmp_path / "resnet50.pth")
    assert made.training_data[0] == "encoder, at first: resnet50.pth"
    tensors = safetensors.torch.load_file(tmp_path / "m" / WEIGHTS_NAME)
    begun = state["layer4.2.conv3.weight"]
    torch.testing.assert_close(tensors["backbone.body.layer4.2.conv3.weight"].float(), begun, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
@pytest.mark.filterwarnings("ignore:.*treespec.*")
def test_a_network_that_learnt_a_scene_finds_each_thing_once_whatever_the_tiles(data: Path, tmp_path: Path) -> None:
    """160 steps of one chip; the network has seen the scene, but no tile of it twice alike, so tiled and untiled masks differ a little."""
    short = recipe(data, max_steps=160, validate_every=40)
    short["chips"]["batch"] = 1
    short["model"]["options"] |= {"score_threshold": 0.9, "nms_threshold": 0.3}
    made = train(short, tmp_path / "model")
    card, weights = ModelCard.read(tmp_path / "model")
    card.check(weights)
    assert card == made
    assert card.scores["town"]["ap50"] > 0.6
    check_each_once(data, tmp_path / "model", card)
    manifest = predict(data / "town.tif", tmp_path / "model", out=tmp_path / "out", device="cpu", options=Options(precision="fp32"))
    assert all(facts["polygons"] for facts in manifest["classes"].values())


def check_each_once(data: Path, model: Path, card: ModelCard) -> None:
    """For two lattices: each thing has an answer, near the untiled one, and no two answers of a class agree."""
    window = Window(0, 0, 256, 256)
    _, _, labels, masks = scene_of(data).cut(window)
    expected = [one for mask, label in zip(masks, labels.tolist(), strict=True) if (one := Instance.of(mask, 0, 0, label, 1.0))]
    detector, scene = Detector.load(model, device="cpu", precision="fp32"), Scene.describe(data / "town.tif", bands=BANDS)
    pixels, valid = scene.read(window)
    (untiled,) = detector.instances(pixels[None], valid[None])
    for tile, overlap in ((128, 64), (192, 64)):
        plan = make_plan(scene, card, Options(tile, overlap), pixel_m=1.0, stretch=None)
        tiles = [each.seen for each in detecting_tiles(plan)]
        found = merge(detect_block(plan, window, detector), tiles, window, overlap)
        assert overlaps(found, expected).max(axis=0).min() >= 0.6
        right = [one for one in untiled if overlaps([one], expected).max() >= 0.7]
        assert overlaps(found, right).max(axis=0).min() >= 0.5
        for label in (1, 2):
            ours = [one for one in found if one.class_id == label]
            assert np.triu(overlaps(ours, ours), 1).max() < 0.5
