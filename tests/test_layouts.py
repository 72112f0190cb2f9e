"""Published layouts, as trees that the tests make; chips from windows against chips from whole images."""

from __future__ import annotations

import math
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely
import yaml
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geoseg.card import Scaling
from geoseg.chips import ChipOptions, Chips, Frame, Pool, SceneFrame, Source, cut
from geoseg.datasets import LabelledScene, LabelledSet, read_set
from geoseg.datasets.plain import SCENES_NAME, ScenesFile
from geoseg.datasets.rasters import ClassLabels, ColourLabels
from geoseg.datasets.scenes import Layer
from geoseg.datasets.vectors import VectorLabels
from geoseg.errors import BandsError, GeoreferenceError, OptionsError, ReadError
from geoseg.legend import ISPRS, Legend
from geoseg.window import Window
from tests import layouts
from tests.conftest import make_scene, windows

RGB = ("red", "green", "blue")
IRRG = ("nir", "red", "green")
WORLDVIEW = ("coastal", "blue", "green", "yellow", "red", "rededge", "nir", "nir2")
LEGENDS = Path(__file__).parents[1] / "configs" / "legends"
BUILDINGS = Legend.from_yaml(LEGENDS / "buildings.yaml")
SCALING = Scaling(dtype="uint8", low=0, high=255, percentiles=(2, 98), mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.1))


def whole(scene: LabelledScene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return scene.read(Window.of(scene.shape), scene.shape)


def test_potsdam_is_read_as_published(tmp_path: Path) -> None:
    found = read_set(layouts.potsdam(tmp_path), "potsdam", ISPRS, RGB)
    assert {part: names for part, names in found.split.items() if names} == {
        "train": ("top_potsdam_2_10", "top_potsdam_7_8"),
        "test": ("top_potsdam_2_13",),
    }
    (scene,) = found.select("train", ["*_2_10"])
    assert isinstance(scene, LabelledScene)
    assert (scene.gsd_m, scene.shape) == (0.05, (96, 96))
    pixels, valid, codes = whole(scene)
    labels = layouts.quilt(0)
    assert np.array_equal(codes, labels)
    assert np.array_equal(pixels, layouts.seen(labels))
    assert valid.all()
    assert np.array_equal(found.allowed[1:7], np.eye(6, dtype=bool))
    assert not found.allowed[7:].any()
    (eroded,) = read_set(tmp_path, "potsdam", ISPRS, RGB, eroded=True).select("train", ["*_2_10"])
    assert (whole(eroded)[2][::12] == 0).all()
    assert np.array_equal(np.delete(whole(eroded)[2], slice(None, None, 12), 0), np.delete(labels, slice(None, None, 12), 0))


def test_the_bands_choose_the_images_of_potsdam(tmp_path: Path) -> None:
    layouts.potsdam(tmp_path)
    (scene,) = read_set(tmp_path, "potsdam", ISPRS, ("red", "nir", "ndsm")).select("train", ["*_2_10"])
    pixels = whole(scene)[0]
    irrg = layouts.seen(layouts.quilt(0))[::-1] + 1
    assert np.array_equal(pixels[:2], irrg[[1, 0]])  # nir is stored as red
    assert (pixels[2] == 7).all()  # the height of 3_13 lacks a column, here that of 2_10
    with pytest.raises(BandsError, match="put it last"):
        read_set(tmp_path, "potsdam", ISPRS, ("ndsm", *RGB))
    with pytest.raises(BandsError, match="no image with the bands swir"):
        read_set(tmp_path, "potsdam", ISPRS, ("swir",))
    with pytest.raises(OptionsError, match=r"red, green, blue, nir; expected 2_Ortho_RGB.*seen: 1_DSM_normalisation, 2_Ortho_RGB"):
        read_set(tmp_path, "potsdam", ISPRS, ("red", "green", "blue", "nir"))


def test_official_splits_are_whole() -> None:
    from geoseg.datasets.isprs import _POTSDAM, _VAIHINGEN

    for published, train, test in ((_POTSDAM, 24, 14), (_VAIHINGEN, 16, 17)):
        assert (len(published.split["train"]), len(published.split["test"])) == (train, test)
        assert len({*published.split["train"], *published.split["test"]}) == train + test


@pytest.mark.parametrize("complete", [True, False])
def test_vaihingen_is_read_as_published(tmp_path: Path, complete: bool) -> None:
    root = layouts.vaihingen(tmp_path / "ISPRS_semantic_labeling_Vaihingen", complete=complete)
    found = read_set(root, "vaihingen", ISPRS, (*IRRG, "ndsm"))
    assert found.split == {"train": ("top_mosaic_09cm_area1", "top_mosaic_09cm_area3"), "test": ("top_mosaic_09cm_area2",)}
    (scene,) = found.select("test")
    pixels, _, codes = whole(scene)
    assert (scene.gsd_m, len(pixels)) == (0.09, 4)
    assert np.array_equal(codes, layouts.quilt(2))
    assert np.array_equal(pixels[3], layouts.quilt(2))
    (eroded,) = read_set(root, "vaihingen", ISPRS, IRRG, eroded=True).select("test")
    assert (whole(eroded)[2][:, ::12] == 0).all()
    with pytest.raises(BandsError, match="its images have nir, red, green"):
        read_set(root, "vaihingen", ISPRS, RGB)


def test_odd_folders_are_refused_with_what_is_expected_and_seen(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    for layout, bands, words in (
        ("potsdam", RGB, r"expected 2_Ortho_RGB/top_potsdam_2_10_RGB\.tif.*seen: holiday\.jpg"),
        ("vaihingen", IRRG, r"expected top/top_mosaic_09cm_area1\.tif.*seen: holiday\.jpg"),
        ("spacenet", RGB, r"seen: holiday\.jpg; expected one of SpaceNet 1: 3band/"),
        ("scenes", RGB, r"scenes\.yaml: not a readable YAML file"),
        ("loveda", RGB, r"expected Train/Urban/images_png/1366\.png with Train/Urban/masks_png.*seen: holiday\.jpg"),
        ("landcoverai", RGB, r"expected images/M-33-20-D-c-4-2\.tif with masks/.*seen: holiday\.jpg"),
        ("openearthmap", RGB, r"expected train\.txt and val\.txt .*, aachen/images/aachen_1\.tif.*seen: holiday\.jpg"),
    ):
        with pytest.raises(OptionsError, match=words):
            read_set(tmp_path, layout, ISPRS, bands)
    with pytest.raises(OptionsError, match="is no folder"):
        read_set(tmp_path / "nowhere", "potsdam", ISPRS, RGB)
    with pytest.raises(OptionsError, match="'touched' belongs to the layouts spacenet"):
        read_set(tmp_path, "potsdam", ISPRS, RGB, touched=True)
    layouts.potsdam(tmp_path)
    (tmp_path / "5_Labels_all" / "top_potsdam_7_8_label.tif").unlink()
    with pytest.raises(OptionsError, match=r"top_potsdam_7_8 has no label; expected .*5_Labels_for_participants"):
        read_set(tmp_path, "potsdam", ISPRS, RGB)
    layouts.potsdam(tmp_path)
    with pytest.raises(OptionsError, match="which legend 'buildings' lacks"):
        read_set(tmp_path, "potsdam", BUILDINGS, RGB)
    five = Legend(name="five", classes=ISPRS.classes[:5])
    assert np.flatnonzero(read_set(tmp_path, "potsdam", five, RGB).allowed.any(1)).tolist() == [1, 2, 3, 4, 5]


def test_odd_labels_are_refused(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "scene.tif", np.zeros((3, 20, 30), np.uint8), colours=RGB)
    grey = make_scene(tmp_path / "grey.tif", np.full((3, 20, 30), 100, np.uint8))
    small = make_scene(tmp_path / "small.tif", np.zeros((3, 20, 29), np.uint8))
    layer = Layer(scene, RGB)
    with pytest.raises(OptionsError, match=r"grey\.tif: pixel row 0, column 0 has the colour \(100, 100, 100\); legend 'isprs' has"):
        whole(LabelledScene("a", (layer,), ColourLabels(grey, ISPRS)))
    deep = make_scene(tmp_path / "deep.tif", np.zeros((3, 20, 30), np.uint16))
    with pytest.raises(ReadError, match="has pixels of type uint16, expected a picture in colours"):
        whole(LabelledScene("a", (layer,), ColourLabels(deep, ISPRS)))
    with pytest.raises(ReadError, match=r"20 x 29 pixels, but its image .* 20 x 30"):
        whole(LabelledScene("a", (layer,), ColourLabels(small, ISPRS)))
    with pytest.raises(OptionsError, match="does not say how large its pixels are"):
        bare = make_scene(tmp_path / "bare.tif", np.zeros((3, 20, 30), np.uint8), crs=None, transform=Affine.identity())
        _ = LabelledScene("a", (Layer(bare, RGB),), ColourLabels(grey, ISPRS)).gsd_m
    Image.new("L", (27, 20)).save(tmp_path / "height.jpg")
    with pytest.raises(ReadError, match=r"height\.jpg: is 20 x 27 pixels, but its image 20 x 30"):
        whole(LabelledScene("a", (layer, Layer(tmp_path / "height.jpg", ("ndsm",))), ColourLabels(grey, ISPRS)))


@pytest.mark.parametrize("which", list(layouts._PAIRS))
def test_every_building_round_is_read_as_published(tmp_path: Path, which: str) -> None:
    bands = {8: WORLDVIEW}.get(layouts._PAIRS[which][2], RGB)
    found = read_set(layouts.spacenet(tmp_path, which), "spacenet", BUILDINGS, bands)
    assert len(found.split["train"]) == 3
    for number, name in enumerate(found.split["train"], 1):
        scene = found.images[name]
        pixels, valid, codes = whole(scene)
        houses = layouts.burnt(layouts.footprints(number)) if number != 2 else np.zeros((60, 60), bool)
        assert np.array_equal(codes, np.where(houses, 2, 1))
        assert (len(pixels), valid.all()) == (len(bands), True)
        assert scene.gsd_m == pytest.approx(0.3, rel=1e-3)
    assert found.allowed[1].tolist() == [True, False]
    assert found.allowed[2].tolist() == [False, True]


def test_the_sharpest_image_with_the_bands_is_taken(tmp_path: Path) -> None:
    layouts.spacenet(tmp_path, "2 on S3")
    rgb = tmp_path / "AOI_2_Vegas" / "PS-RGB"
    rgb.mkdir()
    make_scene(rgb / "SN2_buildings_train_AOI_2_Vegas_PS-RGB_img1.tif", np.ones((3, 60, 60), np.uint16), crs=layouts.UTM)
    assert list(read_set(tmp_path, "spacenet", BUILDINGS, RGB).images) == ["SN2_buildings_train_AOI_2_Vegas_img1"]
    assert len(read_set(tmp_path, "spacenet", BUILDINGS, ("red", "nir2")).images) == 3
    with pytest.raises(BandsError, match="there is PS-RGB with red, green, blue; PS-MS with coastal"):
        read_set(tmp_path, "spacenet", BUILDINGS, ("swir",))


def test_a_summary_table_stands_in_for_geojson(tmp_path: Path) -> None:
    layouts.spacenet(tmp_path, "2", labels=False)
    with pytest.raises(OptionsError, match=r"none of its 3 images of SpaceNet 2 has labels; expected RGB-PanSharpen/.*summary table"):
        read_set(tmp_path, "spacenet", BUILDINGS, RGB)
    houses = {"AOI_2_Vegas_img1": layouts.footprints(1), "AOI_2_Vegas_img2": []}
    table = layouts.summary(tmp_path / "AOI_2_Vegas_Train" / "summaryData" / "AOI_2_Vegas_Train_Building_Solutions.csv", houses)
    found = read_set(tmp_path, "spacenet", BUILDINGS, RGB)
    assert found.split["train"] == ("AOI_2_Vegas_img1", "AOI_2_Vegas_img2")
    assert np.array_equal(whole(found.images["AOI_2_Vegas_img1"])[2], np.where(layouts.burnt(layouts.footprints(1)), 2, 1))
    assert (whole(found.images["AOI_2_Vegas_img2"])[2] == 1).all()
    table.write_text("a,b\n1,2\n")
    with pytest.raises(OptionsError, match="has the columns a, b; expected ImageId"):
        read_set(tmp_path, "spacenet", BUILDINGS, RGB)


def test_not_a_building_is_any_other_class(tmp_path: Path) -> None:
    layouts.spacenet(tmp_path, "6", (1,))
    found = read_set(tmp_path, "spacenet", ISPRS, RGB, touched=True)
    codes = np.unique(whole(found.images[found.split["train"][0]])[2])
    assert found.allowed[codes].tolist() == [[False, True, False, False, False, False], [True, False, True, True, True, True]]
    with pytest.raises(OptionsError, match="has no class 'building'"):
        read_set(tmp_path, "spacenet", Legend(name="trees", classes=ISPRS.classes[3:4]), RGB)


@pytest.mark.parametrize(
    ("layout", "split", "numbers", "pixel_m"),
    [
        ("loveda", {"train": 4, "val": 4}, range(1, 8), {0.3}),
        ("landcoverai", {"train": 3}, range(5), {0.25, 0.5}),
        ("openearthmap", {"train": 2, "val": 2}, range(1, 9), {0.3, 0.35}),
    ],
)
def test_land_cover_is_read_as_published(tmp_path: Path, layout: str, split: dict[str, int], numbers: range, pixel_m: set[float]) -> None:
    root = getattr(layouts, layout)(tmp_path)
    own = read_set(root, layout, Legend.from_yaml(LEGENDS / f"{layout}.yaml"), ("blue", "red"))
    assert {part: len(names) for part, names in own.split.items()} == split
    assert {round(image.gsd_m, 3) for image in own.images.values()} == pixel_m
    isprs = read_set(root, layout, ISPRS, RGB)
    for name, image in own.images.items():
        pixels, valid, codes = whole(image)
        truth = whole(isprs.images[name])[0][0] // 30  # the grey of each class
        assert np.array_equal(pixels[0], pixels[1] + 20)
        assert valid.all()
        assert np.array_equal(codes, np.where(truth == 0, 5, truth) if layout == "landcoverai" else truth)
        mixed = isprs.allowed[whole(isprs.images[name])[2]]
        houses, unlabelled = {"landcoverai": 1, "loveda": 2, "openearthmap": 8}[layout], ~np.isin(truth, numbers)
        assert np.array_equal(mixed[..., 1], truth == houses)
        assert np.array_equal(~mixed.any(-1), unlabelled)
    assert own.allowed.sum(1).max() == 1
    assert isprs.allowed.sum(1).max() > 1
    with pytest.raises(BandsError, match="has no image with the bands nir; its images have red, green, blue"):
        read_set(root, layout, ISPRS, ("nir",))
    with pytest.raises(OptionsError, match="lacks"):
        read_set(root, layout, BUILDINGS, RGB)


def test_sets_of_classes_have_the_same_codes_in_every_layout(tmp_path: Path) -> None:
    names = ("loveda", "landcoverai", "openearthmap")
    found = [read_set(getattr(layouts, name)(tmp_path / name), name, ISPRS, RGB).allowed for name in names]
    found.append(read_set(layouts.spacenet(tmp_path / "spacenet"), "spacenet", ISPRS, RGB).allowed)
    for one in found:
        for other in found:
            both = one.any(1) & other.any(1)
            assert np.array_equal(one[both], other[both])
    assert (np.flatnonzero(found[0].sum(1) == 5) == np.flatnonzero(found[3].sum(1) == 5)).all()  # not building


OWN = {"title": "A town", "licence": "CC0", "attribution": "nobody", "images": "ortho/*.tif"}


def _own(root: Path, table: dict) -> Path:
    (root / "ortho").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate("ab"):
        make_scene(root / "ortho" / f"{name}.tif", layouts.seen(layouts.quilt(number)), colours=RGB)
    (root / SCENES_NAME).write_text(yaml.safe_dump(OWN | table))
    return root


def test_a_folder_of_ones_own_with_rasters(tmp_path: Path) -> None:
    classes = {1: ["building"], 2: ["low vegetation", "tree"], 9: ["building"]}
    table = {"rasters": {"path": "labels/{name}_mask.tif"}, "classes": classes, "split": {"val": ["b"]}}
    (tmp_path / "labels").mkdir()
    numbers = np.random.default_rng(0).choice([0, 1, 2, 3, 9], (1, 96, 96)).astype(np.int16)
    for name in "ab":
        make_scene(tmp_path / "labels" / f"{name}_mask.tif", numbers)
    found = read_set(_own(tmp_path, table), "scenes", ISPRS, RGB)
    assert found.split == {"train": ("a",), "val": ("b",)}
    codes = whole(found.images["a"])[2]
    assert np.array_equal(codes, np.array([0, 2, 243, 0, 0, 0, 0, 0, 0, 2])[numbers[0]])
    assert np.flatnonzero(found.allowed[243]).tolist() == [2, 3]
    with pytest.raises(OptionsError, match=r"image 'a' has no labels, .*labels/a\.tif is not there"):
        read_set(_own(tmp_path, table | {"rasters": {"path": "labels/{name}.tif"}}), "scenes", ISPRS, RGB)
    for change, words in (
        ({"rasters": None}, "state either rasters or polygons"),
        ({"classes": {}}, "classes is empty"),
        ({"classes": {1: ["biulding"]}}, "did you mean 'building'"),
        ({"images": "photo/*.tif"}, r"no file matches images: photo/\*\.tif; the folder has labels, ortho"),
        ({"imagse": "*"}, "did you mean 'images'"),
    ):
        with pytest.raises(OptionsError, match=words):
            read_set(_own(tmp_path, table | change), "scenes", ISPRS, RGB)


def test_colour_coded_labels_of_ones_own(tmp_path: Path) -> None:
    make_scene(tmp_path / "a.tif", layouts.coloured(layouts.quilt(0)))
    table = {"images": "ortho/a.tif", "rasters": {"path": "a.tif", "colours": True}}
    assert np.array_equal(whole(read_set(_own(tmp_path, table), "scenes", ISPRS, RGB).images["a"])[2], layouts.quilt(0))


def test_one_geopackage_in_another_crs_labels_many_scenes(tmp_path: Path) -> None:
    boxes = [shapely.box(350_001, 3_059_995, 350_003, 3_059_999), shapely.box(350_002, 3_059_996, 350_006, 3_059_998)]
    frame = geopandas.GeoDataFrame({"kind": ["roof", "yard"]}, geometry=boxes, crs="EPSG:32645").to_crs("EPSG:4326")
    frame.to_file(tmp_path / "labels.gpkg")
    polygons = {"path": "labels.gpkg", "column": "kind", "outside": ["tree", "car"]}
    table = {"polygons": polygons, "classes": {"roof": ["building"], "yard": ["impervious", "low_vegetation"]}}
    found = read_set(_own(tmp_path, table), "scenes", ISPRS, RGB)
    codes = whole(found.images["b"])[2]
    expected = np.full((96, 96), 231)
    expected[10:50, 10:30], expected[20:40, 20:60] = 2, 250  # the yard, later in the file, lies on the roof
    assert (codes != expected).mean() < 0.01
    assert np.flatnonzero(found.allowed[231]).tolist() == [3, 4]
    assert found.images["a"].labels is found.images["b"].labels
    for change, words in (
        ({"polygons": polygons | {"column": "knid"}}, "did you mean 'kind'"),
        ({"classes": {"roof": ["building"]}}, "'kind' is 'yard' in a feature, for which no class is stated"),
        ({"polygons": polygons | {"column": None}}, "classes is a list for polygons without a column"),
    ):
        with pytest.raises(OptionsError, match=words):
            whole(read_set(_own(tmp_path, table | change), "scenes", ISPRS, RGB).images["a"])
    frame.geometry.representative_point().to_file(tmp_path / "points.gpkg")
    with pytest.raises(OptionsError, match=r"2 of its features are no polygons \(the first is a Point\)"):
        _ = VectorLabels(tmp_path / "points.gpkg", 0, {None: 1}).features
    bare = make_scene(tmp_path / "bare.tif", np.zeros((3, 20, 30), np.uint8), crs=None, transform=Affine.identity(), colours=RGB)
    with pytest.raises(GeoreferenceError, match="has CRS EPSG:4326, but its image"):
        whole(LabelledScene("a", (Layer(bare, RGB),), VectorLabels(tmp_path / "labels.gpkg", 0, {None: 1})))
    pixels = LabelledScene("a", (Layer(bare, RGB),), VectorLabels(tmp_path / "pixels.gpkg", 1, {None: 2}, in_pixels=True))
    geopandas.GeoDataFrame(geometry=[shapely.box(3, 4, 10, 6)], crs="EPSG:32645").to_file(tmp_path / "pixels.gpkg")
    assert np.array_equal(whole(pixels)[2] == 2, np.pad(np.ones((2, 7), bool), [(4, 14), (3, 20)]))


def test_the_guides_example_is_a_description() -> None:
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    said = ScenesFile.model_validate(yaml.safe_load(text.partition("# scenes.yaml")[2].partition("```")[0]))
    assert (said.polygons is not None, said.split) == (True, {"val": ("*_north",)})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LabelledScene]:
    """One scene of 70 x 80 pixels without data in a corner, labelled in three ways."""
    root = tmp_path_factory.mktemp("drawn")
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 250, (3, 70, 80)).astype(np.uint8)
    mask = np.ones((70, 80), bool)
    mask[:20, 60:] = False
    layer = Layer(make_scene(root / "scene.tif", pixels, colours=RGB, mask=mask, tiled=True, blockxsize=16, blockysize=16), RGB)
    labels = np.kron(rng.integers(1, 7, (14, 16)), np.ones((5, 5))).astype(np.uint8)
    colours = ColourLabels(make_scene(root / "colours.tif", layouts.coloured(labels)), ISPRS)
    numbers = ClassLabels(make_scene(root / "numbers.tif", labels[None]), {i: i for i in range(1, 6)})
    shapes = [shapely.Point(*rng.uniform(0, 70, 2)).buffer(rng.uniform(1, 15), quad_segs=3) for _ in range(12)]
    geopandas.GeoDataFrame({"class": list(map(str, range(12)))}, geometry=shapes, crs="EPSG:32645").to_file(root / "shapes.gpkg")
    codes = {str(i): 1 + i % 6 for i in range(12)}
    polygons = [VectorLabels(root / "shapes.gpkg", 7, codes, "class", touched=touched, in_pixels=True) for touched in (False, True)]
    made = {"colours": colours, "numbers": numbers, "centre": polygons[0], "touched": polygons[1]}
    return {name: LabelledScene(name, (layer,), labels) for name, labels in made.items()}


@given(st.sampled_from(["colours", "numbers", "centre", "touched"]), windows(), st.sampled_from([(70, 80), (35, 40), (33, 59), (91, 104)]))
@settings(max_examples=60)
def test_a_window_is_cut_from_the_whole(drawn, which, place, shape):
    scene, window = drawn[which], Window(*place)
    pixels, valid, codes = scene.read(window, shape)
    every = scene.read(Window.of(shape), shape)
    inside = window & Window.of(shape)
    outside = np.ones(window.shape, bool)
    if inside is not None:
        there, here = inside.within(window), inside.within(Window.of(shape))
        assert np.array_equal(valid[there], every[1][here])
        assert np.array_equal(codes[there], every[2][here])
        assert np.array_equal(pixels[:, *there][:, valid[there]], every[0][:, *here][:, valid[there]])
        outside[there] = False
    assert not valid[outside].any()
    assert not codes[~valid].any()


def test_polygons_are_burnt_as_gdal_burns_them(drawn):
    for which in ("centre", "touched"):
        labels = drawn[which].labels
        shapes = zip(labels.features[1], labels.features[2].tolist(), strict=True)
        expected = rasterio.features.rasterize(shapes, (70, 80), fill=7, all_touched=which == "touched", dtype=np.uint8)
        assert np.array_equal(drawn[which].codes(Window(0, 0, 70, 80), (70, 80)), expected)
    assert (drawn["touched"].codes(Window(0, 0, 70, 80), (70, 80)) != 7).sum() > (expected[:] != 7).sum() * 0.5


@given(st.floats(0, 2 * math.pi), st.floats(0.5, 2.5), st.floats(0, 80), st.floats(0, 70), st.sampled_from(["colours", "touched"]))
@settings(max_examples=40)
def test_a_chip_from_a_window_is_the_chip_from_the_whole_image(drawn, angle, step, x, y, which):
    image = drawn[which]
    frame = SceneFrame.load(image, 0.1, [1, 2], SCALING, np.random.default_rng(0))
    pixels, valid, codes = whole(image)
    picture = Image.fromarray(np.where(valid, pixels, 0).transpose(1, 2, 0).astype(np.uint8))
    known = Image.fromarray(np.where(valid, 255, 0).astype(np.uint8))
    decoded = Frame((picture,), Image.fromarray(codes), 0.1, 0.1, {}, known)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    reach = np.abs(turn).sum(1).max() * step * 24 / 2 + 2
    ours, theirs = cut(*frame.around((x, y), reach), step, turn, 24), cut(decoded, (x, y), step, turn, 24)
    same = [np.isclose(a.astype(int), b.astype(int), atol=1).mean() for a, b in zip(ours, theirs, strict=True)]
    assert min(same) > 0.99  # but for rounding at ties


def test_chips_of_scenes_know_rare_classes_and_other_types(tmp_path: Path) -> None:
    labelled = read_set(layouts.spacenet(tmp_path), "spacenet", BUILDINGS, RGB)
    options = ChipOptions(size=32, batch=16, scale=(1.0, 1.0), rare=1.0, rotate=0.0)
    pool = Pool.load(labelled, Source(set="x", layout="spacenet"), 0.3, SCALING, np.random.default_rng(0))
    pixels, codes = Chips([pool], options, SCALING, 0.3, seed=0)[0]
    assert (pixels.dtype.is_floating_point, tuple(pixels.shape), tuple(codes.shape)) == (True, (16, 3, 32, 32), (16, 32, 32))
    assert 0.3 < (codes == 2).flatten(1).any(1).float().mean() < 1
    house = pixels.permute(0, 2, 3, 1)[codes == 2].mean(0) * 0.2 + 0.4  # uint16, stretched between its percentiles as in prediction
    ground = pixels.permute(0, 2, 3, 1)[codes == 1].mean(0) * 0.2 + 0.4
    assert (house - ground > 0.3).all()
    for frame in pool.frames:
        for code, spots in frame.picks.items():
            seen = frame.image.codes(Window.of(frame.shape), frame.shape)
            assert (seen[spots[:, 1], spots[:, 0]] == code).all()
            assert len(np.unique(spots, axis=0)) == len(spots) == min(512, (seen == code).sum())


def test_labels_of_a_large_scene_are_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = layouts.potsdam(tmp_path, ("2_10",), size=960, heights=False) and read_set(tmp_path, "potsdam", ISPRS, RGB).select("train")[0]
    largest = 0
    read = LabelledScene.read

    def watched(self, window, shape):
        nonlocal largest
        largest = max(largest, window.area)
        return read(self, window, shape)

    monkeypatch.setattr(LabelledScene, "read", watched)
    labelled = LabelledSet("p", "", "", "", np.eye(256, 6, -1, dtype=bool), {"train": ("x",)}, {"x": scene})
    pool = Pool.load(labelled, Source(set="p"), 0.05, SCALING, np.random.default_rng(0))
    batch = Chips([pool], ChipOptions(size=64, batch=8, scale=(0.5, 1.0)), SCALING, 0.05, seed=0)[0]
    assert 0 < largest <= (64 * math.sqrt(2) + 6) ** 2
    assert (batch[1] > 0).all()
