"""From a scene to instances as polygons, with a network that answers what is painted in its tile."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geoseg.blocks import read_views, write_views
from geoseg.card import CARD_NAME, WEIGHTS_NAME, Scaling
from geoseg.cluster import Cluster
from geoseg.crf import DenseCRF
from geoseg.detector import Detector
from geoseg.engine import Options, detect_block, detecting_tiles, make_plan
from geoseg.errors import CardError, OptionsError, OutputError
from geoseg.instances import Instance, merge, overlaps
from geoseg.legend import Legend, LegendClass
from geoseg.networks import maskrcnn
from geoseg.networks.maskrcnn import Detections
from geoseg.polygons import Shaping
from geoseg.scene import Scene
from geoseg.segmenter import Segmenter
from geoseg.verbs import predict as room
from geoseg.verbs.batch import Settings, batch, status
from geoseg.verbs.export import export
from geoseg.verbs.inspect import estimate
from geoseg.verbs.predict import predict
from geoseg.window import Window
from tests.conftest import make_scene
from tests.oracles import card

METRES = rasterio.Affine(1, 0, 354000, 0, -1, 3057000)
LEGEND = Legend(
    name="things",
    classes=(
        LegendClass(id=7, name="buildings", title="Buildings", colour="#d94f3d"),
        LegendClass(id=9, name="cars", title="Cars", colour="#f2c744"),
    ),
)
FACTS = {
    "architecture": "maskrcnn_resnet50_fpn",
    "legend": LEGEND,
    "scaling": Scaling(dtype="uint8", low=0, high=255, percentiles=(2, 98), mean=(0, 0, 0), std=(1, 1, 1)),
    "tile": 128,
    "overlap": 64,
    "stride": 16,
}


class Painted(torch.nn.Module):
    """Red numbers the instance, green says its label, blue its score; a cut instance has the box of its part."""

    calls = 0

    def forward(self, pixels: torch.Tensor) -> list[Detections]:
        type(self).calls += len(pixels)
        return [self._answer((tile * 255).round().long()) for tile in pixels]

    def _answer(self, tile: torch.Tensor) -> Detections:
        boxes, labels, scores, masks = [], [], [], []
        for number in torch.unique(tile[0])[1:]:
            rows, cols = torch.nonzero(tile[0] == number, as_tuple=True)
            top, bottom, left, right = rows.min(), rows.max() + 1, cols.min(), cols.max() + 1
            inside = (tile[0] == number)[top:bottom, left:right].float()
            boxes.append([left, top, right, bottom])
            labels.append(int(tile[1, rows[0], cols[0]]))
            scores.append(float(tile[2, rows[0], cols[0]]) / 255)
            masks.append(torch.nn.functional.interpolate(inside[None, None], (28, 28), mode="bilinear")[0, 0])
        count = len(boxes)
        order = np.argsort([-score for score in scores], kind="stable").tolist()
        return Detections(
            torch.tensor(boxes, dtype=torch.float32).reshape(count, 4)[order],
            torch.tensor(labels, dtype=torch.int64)[order],
            torch.tensor(scores)[order],
            torch.stack(masks)[order] if masks else torch.zeros(0, 28, 28),
        )


def detector() -> Detector:
    return Detector(card(**FACTS), Painted(), device="cpu", precision="fp32")


def paint(rng: np.random.Generator, shape: tuple[int, int], count: int = 40, most: int = 60) -> np.ndarray:
    """Houses (rectangles of 24 pixels and more, up to larger than a tile) and cars (12 x 20), (3, H, W) uint8."""
    pixels, number = np.zeros((3, *shape), np.uint8), 0
    pixels[2] = 1  # no data is 0 in all bands
    for turn in range(count):
        label = 1 + turn % 2
        size = rng.integers(24, most + 1, 2) if label == 1 else rng.permutation([12, 20])
        corner = [int(rng.integers(0, full - part + 1)) for full, part in zip(shape, size, strict=True)]
        place = pixels[:, corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
        if not place[0].any():
            number += 1
            place[:] = np.array([number, label, rng.integers(130, 255)])[:, None, None]
    return pixels


def truth(pixels: np.ndarray) -> list[Instance]:
    found = []
    for number in np.unique(pixels[0])[1:].tolist():
        mask = pixels[0] == number
        one = Instance.of(mask, 0, 0, LEGEND.ids[int(pixels[1][mask][0]) - 1], int(pixels[2][mask][0]) / 255)
        assert one is not None
        found.append(one)
    return found


@settings(max_examples=8)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(100, 300),
    st.integers(100, 300),
    st.sampled_from([(64, 32), (96, 32), (128, 64), (160, 48), (512, 64)]),
    st.sampled_from([100, 133, 512]),
)
def test_any_grid_and_any_blocks_give_the_untiled_answer(
    tmp_path_factory: pytest.TempPathFactory, seed: int, height: int, width: int, grid: tuple[int, int], block: int
) -> None:
    pixels = paint(np.random.default_rng(seed), (height, width), most=min(height, width, 200))
    path = make_scene(tmp_path_factory.mktemp("scene") / "painted.tif", pixels, transform=METRES)
    scene = Scene.describe(path)
    model = detector()
    plan = make_plan(scene, model.card, Options(*grid), pixel_m=1.0, stretch=None)
    views = [view for core in plan.cores(block) for view in detect_block(plan, core, model)]
    whole, tiles = Window.of(scene.shape), [tile.seen for tile in detecting_tiles(plan)]
    found = merge(views, tiles, whole, plan.tiling.overlap)
    (untiled,) = model.instances(pixels[None], np.ones((1, *scene.shape), bool))
    once = detect_block(plan, whole, model)
    assert len(once) == len(views)
    again = merge(once, tiles, whole, plan.tiling.overlap)
    assert [(i.window, i.score, i.runs.tolist()) for i in again] == [(i.window, i.score, i.runs.tolist()) for i in found]
    assert len(found) == len(untiled) == len(truth(pixels))
    iou = overlaps(found, untiled)
    assert iou.max(axis=0, initial=1).min(initial=1) >= 0.9
    assert ((iou >= 0.5).sum(axis=0) == 1).all()


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder whose network is the painted one."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / WEIGHTS_NAME).touch()
    (folder / CARD_NAME).write_text(card(**FACTS).to_json())
    monkeypatch.setattr(room.Detector, "load", lambda *_, **__: detector())
    room._loaded.cache_clear()
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> tuple[Path, np.ndarray]:
    pixels = paint(np.random.default_rng(4), (300, 420), 60, 150)
    pixels[:, :40, :60] = 0
    return make_scene(tmp_path / "photo.tif", pixels, nodata=0, transform=METRES), pixels


def read(folder: Path, name: str) -> geopandas.GeoDataFrame:
    return geopandas.read_file(folder / "photo_polygons.gpkg", layer=name)


def test_a_scene_becomes_layers_of_instances(model: Path, photo: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, pixels = photo
    manifest = predict(path, model, out=tmp_path / "out", device="cpu", block=200)
    (expected,) = detector().instances(pixels[None], (pixels.any(0))[None])
    assert sorted(manifest["outputs"]) == ["photo_polygons.gpkg", "photo_quicklook.png"]
    for name, class_id in (("buildings", 7), ("cars", 9)):
        layer, of_class = read(tmp_path / "out", name), [one for one in expected if one.class_id == class_id]
        assert len(layer) == len(of_class) == manifest["classes"][name]["polygons"]
        assert list(layer.columns) == ["class_id", "class_name", "area_m2", "perimeter_m", "confidence", "geometry"]
        assert set(layer["class_name"]) == {name}
        assert sorted(layer["confidence"].round(5)) == pytest.approx(sorted(round(one.score, 5) for one in of_class), abs=1e-5)
        assert layer.geometry.is_valid.all()
        np.testing.assert_allclose(layer["area_m2"], layer.geometry.area, rtol=2e-3)
        assert layer["area_m2"].sum() == pytest.approx(sum(one.area for one in of_class), rel=0.05)
    with Image.open(tmp_path / "out" / "photo_quicklook.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {c.rgb for c in LEGEND.classes} <= colours
    assert predict(path, model, out=tmp_path / "out", device="cpu")["already_done"]


def test_a_killed_run_goes_on_by_blocks_to_the_same_polygons(
    model: Path, photo: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = photo
    predict(path, model, out=tmp_path / "whole", device="cpu", quicklook=False)
    kept = room.write_views
    written = []

    def until_the_second(target: Path, views: list) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(target)
        kept(target, views)

    monkeypatch.setattr(room, "write_views", until_the_second)
    with pytest.raises(KeyboardInterrupt):
        predict(path, model, out=tmp_path / "out", device="cpu", block=150, quicklook=False)
    assert sorted(p.name for p in (tmp_path / "out" / ".geoseg-photo").glob("block-*")) == sorted(p.name for p in written)
    monkeypatch.setattr(room, "write_views", kept)
    manifest = predict(path, model, out=tmp_path / "out", device="cpu", block=150, quicklook=False)
    assert manifest["blocks"] == {"total": 6, "taken_up": 2}
    for name in ("buildings", "cars"):
        assert read(tmp_path / "out", name).equals(read(tmp_path / "whole", name))


def test_a_part_of_the_scene_and_other_pixels(model: Path, photo: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, pixels = photo
    box = (354100.0, 3056800.0, 354300.0, 3056900.0)
    predict(path, model, out=tmp_path / "part", bbox=box, device="cpu", quicklook=False)
    wanted = np.zeros(pixels.shape[1:], bool)
    wanted[100:200, 100:300] = True
    for name, class_id in (("buildings", 7), ("cars", 9)):
        layer = read(tmp_path / "part", name)
        inside = sum((one.mask(Window.of(wanted.shape)) & wanted).any() for one in truth(pixels) if one.class_id == class_id)
        assert abs(len(layer) - inside) <= 1  # one may touch the box by a row that the pasted mask lacks
        minx, miny, maxx, maxy = layer.total_bounds
        assert box[0] <= minx and box[1] <= miny and maxx <= box[2] and maxy <= box[3]
    fine = make_scene(tmp_path / "fine.tif", pixels.repeat(2, 1).repeat(2, 2), transform=METRES * METRES.scale(0.5))
    manifest = predict(fine, model, out=tmp_path / "fine", device="cpu", quicklook=False)
    assert manifest["classes"]["cars"]["polygons"] == sum(one.class_id == 9 for one in truth(pixels))


def test_outlines_are_shaped_each_by_itself(model: Path, photo: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, pixels = photo
    shaping = Shaping(min_area_m2={"cars": 1000.0}, simplify_m=1.5, regularize=("buildings",))
    predict(path, model, out=tmp_path / "out", shaping=shaping, device="cpu", quicklook=False)
    assert not len(read(tmp_path / "out", "cars"))
    houses = read(tmp_path / "out", "buildings")
    (found,) = detector().instances(pixels[None], (pixels.any(0))[None])
    expected = [one.area for one in found if one.class_id == 7]
    assert len(houses) == len(expected)
    assert (houses.geometry.count_coordinates() <= 9).all()
    assert houses.area.sum() == pytest.approx(sum(expected), rel=0.06)


def test_an_empty_scene_is_no_failure(model: Path, tmp_path: Path) -> None:
    path = make_scene(tmp_path / "photo.tif", np.full((3, 90, 70), 0, np.uint8), transform=METRES)
    manifest = predict(path, model, out=tmp_path / "out", device="cpu")
    assert "no instance was found" in manifest["warnings"][-1]
    assert len(read(tmp_path / "out", "cars")) == 0


@pytest.mark.parametrize(
    ("options", "more", "word"),
    [
        (Options(tta="d4"), {}, "--tta"),
        (Options(scores=True), {}, "--scores"),
        (Options(taper="hann"), {}, "--taper"),
        (Options(crf=DenseCRF()), {}, "--crf"),
        (Options(), {"confidence": True}, "--confidence"),
        (Options(), {"compile": True}, "--compile"),
        (Options(), {"shaping": Shaping(split=("cars",))}, "--split"),
        (Options(), {"shaping": Shaping(connectivity=8)}, "--connectivity"),
        (Options(overlap=0), {}, "overlap 0"),
    ],
)
def test_what_has_no_meaning_for_instances_is_refused(
    model: Path, photo: tuple[Path, np.ndarray], tmp_path: Path, options: Options, more: dict, word: str
) -> None:
    with pytest.raises(OptionsError, match=word):
        predict(photo[0], model, out=tmp_path / "out", options=options, device="cpu", **more)
    assert not (tmp_path / "out").exists()


def test_the_other_verbs_know_such_a_model(model: Path, photo: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    facts = estimate(photo[0], model, device="cpu")
    assert facts["tiles"] > 0 and facts["seconds"] > 0
    weights = model / WEIGHTS_NAME
    described = json.loads((model / CARD_NAME).read_text())
    described["sha256"] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # of nothing
    (model / CARD_NAME).write_text(json.dumps(described))
    assert weights.stat().st_size == 0
    with pytest.raises(CardError, match="answers with instances"):
        Segmenter.load(model, device="cpu")
    with pytest.raises(CardError, match="answers with instances"):
        export(model, tmp_path / "model.onnx")


def test_a_batch_of_instances(model: Path, photo: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    settings = Settings(model=str(model), device="cpu")
    with pytest.raises(OptionsError, match=r"--mosaic: model .* finds instances"):
        batch([photo[0]], out=tmp_path / "maps", settings=settings, mosaic=tmp_path / "all.gpkg")
    assert batch([photo[0]], out=tmp_path / "maps", settings=settings)["done"] == 1
    (row,) = status(tmp_path / "maps")
    assert row["megapixels"] == pytest.approx(photo[1][0].size / 1e6)
    assert len(read(tmp_path / "maps", "buildings")) > 0


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore:Sending large graph:UserWarning")
def test_workers_of_a_cluster_answer_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "lively"
    folder.mkdir()
    torch.manual_seed(0)
    facts = FACTS | {"options": {"score_threshold": 0.05, "most": 6}, "stride": 64}
    network = maskrcnn.build("maskrcnn_resnet50_fpn", 3, 2, **facts["options"])
    with torch.no_grad():  # random weights find nothing: make the heads lively
        network.rpn.head.cls_logits.weight.mul_(50)
        network.roi_heads.box_predictor.cls_score.weight.mul_(20)
        network.roi_heads.mask_predictor.mask_fcn_logits.weight.mul_(20)
    safetensors.torch.save_file(network.state_dict(), folder / WEIGHTS_NAME)
    digest = hashlib.sha256((folder / WEIGHTS_NAME).read_bytes()).hexdigest()
    (folder / CARD_NAME).write_text(card(**facts, sha256=digest).to_json())
    pixels = np.random.default_rng(5).integers(1, 255, (3, 128, 300), np.uint8)
    path = make_scene(tmp_path / "photo.tif", pixels, transform=METRES)
    asked = {"device": "cpu", "block": 128, "options": Options(precision="fp32")}
    here = predict(path, folder, out=tmp_path / "here", **asked)
    there = predict(path, folder, out=tmp_path / "there", cluster=Cluster.of("local:2"), **asked)
    assert here["blocks"]["total"] > 2
    assert sum(facts["polygons"] for facts in here["classes"].values()) > 3
    assert there["classes"] == here["classes"]


def test_a_block_of_views_that_was_damaged_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "block-0.npz"
    write_views(path, [])
    assert read_views(path) == []
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OutputError, match="cannot be read back"):
        read_views(path)
