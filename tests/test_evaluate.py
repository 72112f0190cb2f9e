"""Maps against references of every kind: real files, scored again by numpy, scikit-learn and rasterio."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio.features
import shapely
import sklearn.metrics
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from PIL import Image

from geoseg.boundaries import erode
from geoseg.cog import write_cog
from geoseg.comparison.pairs import Pair
from geoseg.comparison.rasters import Choice, Comparison
from geoseg.errors import GeosegError, OptionsError, SceneError
from geoseg.legend import ISPRS, Legend
from geoseg.policy import Policy
from geoseg.scores import PROTOCOLS, interval
from geoseg.segments import errors
from geoseg.verbs.compare import compare
from geoseg.verbs.evaluate import evaluate
from geoseg.verbs.vectorize import vectorize
from geoseg.window import Window
from tests.conftest import PLACE, make_scene
from tests.test_cli import geoseg

SHAPE = (60, 50)
COLOURS = np.array([(0, 0, 0), *(c.rgb for c in ISPRS.classes)], np.uint8)
CODES = """
codes:
  0: {name: ignore, allowed: []}
  2: {name: building, allowed: [building]}
  4: {name: tree, allowed: [Tree]}
  10: {name: not building, allowed: [impervious, low_vegetation, tree, car, clutter]}
"""


def patches(seed: int, classes: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6), shape: tuple[int, int] = SHAPE) -> np.ndarray:
    coarse = np.random.default_rng(seed).choice(classes, (shape[0] // 5, shape[1] // 5))
    return np.kron(coarse, np.ones((5, 5), int)).astype(np.uint8)


def blurred(classes: np.ndarray, seed: int) -> np.ndarray:
    """A prediction: shifted by a pixel, wrong in places."""
    random = np.random.default_rng(seed)
    return np.where(random.random(classes.shape) < 0.8, np.roll(classes, 1, 1), random.integers(0, 7, classes.shape)).astype(np.uint8)


def save(path: Path, classes: np.ndarray, **options: Any) -> Path:
    return make_scene(path, classes[None] if classes.ndim == 2 else classes, **{"nodata": 0, **options})


def save_own(path: Path, classes: np.ndarray, legend: Legend = ISPRS) -> Path:
    """As `predict` writes it."""
    write_cog([(Window.of(classes.shape), classes)], path, GeoBox(classes.shape, PLACE, "EPSG:32645"), legend, {"GEOSEG_VERSION": "0.1"})
    return path


def boxes(path: Path, rows: list[tuple[Any, ...]], names: tuple[str, ...] = ("class_name",), crs: str = "EPSG:32645") -> Path:
    """Polygons from pixel rectangles (row, col, height, width), with attributes."""
    shapes = [
        shapely.transform(shapely.box(c, r, c + w, r + h), lambda xy: np.stack([*(PLACE @ tuple(xy.T))], 1)) for r, c, h, w, *_ in rows
    ]
    table = {name: [row[4 + at] for row in rows] for at, name in enumerate(names)}
    geopandas.GeoDataFrame(table, geometry=shapes, crs="EPSG:32645").to_crs(crs).to_file(path)
    return path


def comparison(pairs: list[Pair], protocol: str = "plain", **options: Any) -> Comparison:
    plain = {"legend": ISPRS, "codes": None, "class_name": None, "nodata": None, "reference_nodata": None, "boundary_px": 2, "area": None}
    return Comparison.of(pairs, Choice(PROTOCOLS[protocol], policy=Policy(), **{**plain, **options}))


# --- rasters ---


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_scikit_learn(tmp_path: Path, seed: int) -> None:
    truth = patches(seed)
    guess = blurred(truth, seed)
    facts = evaluate(save_own(tmp_path / "p.tif", guess), save(tmp_path / "r.tif", truth))
    y, x = truth[truth > 0], guess[truth > 0]
    precision, recall, f1, support = sklearn.metrics.precision_recall_fscore_support(y, x, labels=ISPRS.ids)
    iou = sklearn.metrics.jaccard_score(y, x, labels=ISPRS.ids, average=None)
    for at, each in enumerate(facts["classes"].values()):
        found = [each[key] for key in ("iou", "f1", "dice", "precision", "recall")]
        assert found == pytest.approx([iou[at], f1[at], f1[at], precision[at], recall[at]], abs=1e-9)
        assert (each["reference_pixels"], each["predicted_pixels"]) == (support[at], (x == at + 1).sum())
    expected = {
        "pixel_accuracy": sklearn.metrics.accuracy_score(y, x),
        "mean_accuracy": recall.mean(),
        "miou": iou.mean(),
        "frequency_weighted_iou": (support * iou).sum() / support.sum(),
        "mean_f1": f1.mean(),
        "mean_dice": f1.mean(),
        "kappa": sklearn.metrics.cohen_kappa_score(y, x),
    }
    assert {key: facts["measures"][key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert facts["protocol"] == "plain"
    assert facts["intervals"] is None
    assert facts["undefined"] == {"ece": "no confidence raster was given"}
    assert facts["unpredicted_pixels"] == (x == 0).sum() > 0
    assert np.array(facts["confusion"]["counts"]).tolist() == sklearn.metrics.confusion_matrix(y, x, labels=range(7))[1:].tolist()


@pytest.mark.parametrize("protocol", ["plain", "isprs-eroded"])
@pytest.mark.parametrize("kind", ["classes", "polygons"])
def test_windows_leave_no_trace(tmp_path: Path, protocol: str, kind: str) -> None:
    truth = patches(1)
    prediction = save(tmp_path / "p.tif", blurred(truth, 1))
    sure = save(tmp_path / "c.tif", np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8), nodata=255)
    reference = save(tmp_path / "r.tif", truth)
    if kind == "polygons":
        vectorize(reference, tmp_path / "r.gpkg", legend="isprs")
        reference = tmp_path / "r.gpkg"
    whole = comparison([Pair("one", prediction, reference, sure)], protocol)
    expected = whole.count(whole.scenes[0], lambda *_: None)
    assert expected.reliability.counts.any()
    assert expected.contours.counts.any() == (protocol == "plain")
    for span in ((7, 11), (1, 50), (60, 3)):
        found = whole.count(whole.scenes[0], lambda *_: None, span)
        for part in ("confusion", "bands", "contours", "reliability"):
            assert np.array_equal(getattr(found, part).counts, getattr(expected, part).counts), (span, part)


def test_isprs_protocols_erode_the_reference_and_leave_clutter_out_of_means(tmp_path: Path) -> None:
    truth = patches(2)
    guess = blurred(truth, 2)
    paths = save(tmp_path / "p.tif", guess), save(tmp_path / "r.tif", truth)
    rims = erode(np.pad(truth, 3), 3)
    assert 0 < (rims > 0).sum() < (truth > 0).sum()
    for protocol, labels, classes in (
        ("isprs-full", truth, 5),
        ("isprs-full-6", truth, 6),
        ("isprs-eroded", rims, 5),
        ("isprs-eroded-6", rims, 6),
    ):
        facts = evaluate(*paths, protocol=protocol)
        y, x = labels[labels > 0], guess[labels > 0]
        iou = sklearn.metrics.jaccard_score(y, x, labels=ISPRS.ids, average=None)
        assert facts["measures"]["miou"] == pytest.approx(iou[:classes].mean(), abs=1e-9)
        assert facts["measures"]["pixel_accuracy"] == pytest.approx((y == x).mean(), abs=1e-9)
        assert facts["labelled_pixels"] == y.size
        assert facts["protocol"] == protocol
        assert (facts["measures"]["mean_boundary_iou"] is None) == protocol.startswith("isprs-eroded")


def test_coloured_references_are_read_as_isprs_publishes_them(tmp_path: Path) -> None:
    truth = patches(3)
    prediction = save_own(tmp_path / "p.tif", blurred(truth, 3))
    coloured = save(tmp_path / "label.tif", COLOURS[truth].transpose(2, 0, 1), nodata=None, crs=None, transform=Affine.identity())
    plain = evaluate(prediction, save(tmp_path / "r.tif", truth))
    facts = evaluate(prediction, coloured)
    assert facts["confusion"] == plain["confusion"]
    assert facts["measures"] == plain["measures"]
    assert [warning for warning in facts["warnings"] if "no georeference" in warning]


def test_a_colour_that_is_no_class_is_named_with_its_place(tmp_path: Path) -> None:
    pixels = COLOURS[patches(3)].transpose(2, 0, 1).copy()
    pixels[:, 17, 23] = 200, 255, 0
    pixels[:, 40, 2] = 1, 2, 3
    prediction, label = save(tmp_path / "p.tif", patches(3)), save(tmp_path / "label.tif", pixels, nodata=None)
    with pytest.raises(OptionsError, match=r"row 17, column 23 has the colour \(200, 255, 0\); legend 'isprs' has \(255, 255, 255\) Imp"):
        evaluate(prediction, label)


def test_numbers_of_other_tools_are_matched_as_they_are(tmp_path: Path) -> None:
    truth, guess = patches(4, (0, 3, 9, 5)).astype(np.uint16), patches(5, (0, 3, 9, 7)).astype(np.uint16)
    truth[truth == 9] = guess[guess == 9] = 300
    facts = evaluate(save(tmp_path / "p.tif", guess, nodata=None), save(tmp_path / "r.tif", truth, nodata=None))
    assert facts["measures"]["pixel_accuracy"] == (truth == guess).mean()
    assert set(facts["classes"]) == {"class_0", "class_3", "class_5", "class_7", "class_300"}
    assert facts["classes"]["class_7"]["iou"] is None
    fewer = evaluate(tmp_path / "p.tif", tmp_path / "r.tif", nodata=0, reference_nodata=0)
    assert fewer["labelled_pixels"] == (truth != 0).sum()
    assert fewer["measures"]["pixel_accuracy"] == (truth == guess)[truth != 0].mean()


def test_partial_labels_give_the_measures_that_are_defined(tmp_path: Path) -> None:
    labels, guess = patches(6, (0, 2, 4, 10)), patches(7, (0, 1, 2, 3, 4))
    codes = tmp_path / "set.yaml"
    codes.write_text(CODES)
    facts = evaluate(save_own(tmp_path / "p.tif", guess), save(tmp_path / "r.tif", labels), codes=codes)
    building = [((guess == 2) & (labels == 2)).sum(), ((guess == 2) & np.isin(labels, (4, 10))).sum(), ((guess != 2) & (labels == 2)).sum()]
    tree = [((guess == 4) & (labels == 4)).sum(), ((guess == 4) & (labels == 2)).sum(), ((guess != 4) & (labels == 4)).sum()]
    for name, hits in (("building", building), ("tree", tree)):
        assert facts["classes"][name]["iou"] == pytest.approx(hits[0] / sum(hits), abs=1e-9)
    right = (guess == labels) & (labels > 0) & (labels < 10) | (labels == 10) & (guess != 2) & (guess > 0)
    assert facts["measures"]["pixel_accuracy"] == pytest.approx(right.sum() / (labels > 0).sum(), abs=1e-9)
    assert facts["measures"]["kappa"] is facts["measures"]["frequency_weighted_iou"] is facts["classes"]["car"]["iou"] is None
    assert "several classes" in facts["undefined"]["kappa"]
    assert "overlap" in facts["undefined"]["mean_boundary_iou"]  # a tree is not a building, too


def test_building_or_not_has_outlines(tmp_path: Path) -> None:
    labels = patches(8, (2, 10))
    codes = tmp_path / "set.yaml"
    codes.write_text(CODES.replace("  4: {name: tree, allowed: [Tree]}\n", ""))
    guess = np.where(labels == 2, 2, np.random.default_rng(0).choice((1, 3, 4), SHAPE)).astype(np.uint8)
    facts = evaluate(save_own(tmp_path / "p.tif", guess), save(tmp_path / "r.tif", labels), codes=codes)
    assert facts["classes"]["building"]["boundary_f1"] == facts["classes"]["building"]["boundary_iou"] == 1
    assert facts["classes"]["tree"]["boundary_iou"] is None


@pytest.mark.parametrize("crs", ["EPSG:32645", "EPSG:4326"])
def test_polygons_are_drawn_by_the_centre_rule(tmp_path: Path, crs: str) -> None:
    rows = [(5, 4, 10, 12), (30.3, 20.7, 9.6, 7.9), (50, 40, 30, 30)]
    reference = boxes(tmp_path / "r.gpkg", rows, (), crs)
    guess = patches(9, (1, 2))
    facts = evaluate(save_own(tmp_path / "p.tif", guess), reference, class_name="building")
    drawn = rasterio.features.rasterize([shapely.box(c, r, c + w, r + h) for r, c, h, w in rows], SHAPE) > 0
    hits = (drawn & (guess == 2)).sum(), (drawn | (guess == 2)).sum()
    assert facts["classes"]["building"]["iou"] == pytest.approx(hits[0] / hits[1], abs=1e-9)
    assert facts["labelled_pixels"] == guess.size
    assert facts["measures"]["mean_boundary_iou"] == facts["classes"]["building"]["boundary_iou"] > 0
    assert {facts["classes"]["impervious"][key] for key in ("iou", "precision", "boundary_iou")} == {None}


def test_polygons_of_all_classes_are_as_good_as_the_raster(tmp_path: Path) -> None:
    truth = patches(13)
    prediction, reference = save_own(tmp_path / "p.tif", blurred(truth, 13)), save_own(tmp_path / "r.tif", truth)
    vectorize(reference, tmp_path / "r.gpkg")
    ours, theirs = (evaluate(prediction, tmp_path / name) for name in ("r.gpkg", "r.tif"))
    assert ours["confusion"] == theirs["confusion"]
    assert ours["measures"] == theirs["measures"]


def test_scenes_without_a_building_are_scored_beside_others(tmp_path: Path) -> None:
    maps, truth = tmp_path / "maps", tmp_path / "truth"
    for folder in (maps, truth):
        folder.mkdir()
    guess = np.ones(SHAPE, np.uint8)
    guess[10:20, 10:20] = 2
    for name in "ab":
        save_own(maps / f"{name}_classes.tif", guess)
    boxes(truth / "a.geojson", [(10, 10, 10, 20)], ())
    (truth / "b.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    facts = evaluate(maps, truth, class_name="building")
    assert facts["classes"]["building"]["iou"] == pytest.approx(100 / 300, abs=1e-9)
    assert facts["scenes"][1]["iou"]["building"] is None
    assert facts["scenes"][1]["measures"]["pixel_accuracy"] == 1 - 100 / guess.size
    empty = evaluate(boxes(tmp_path / "p.geojson", [(10, 10, 10, 20)], ()), truth / "a.geojson")
    assert empty["measures"]["f1"] == 1
    refused(OptionsError, "holds no polygon that counts", tmp_path / "p.geojson", truth / "b.geojson")


def test_a_map_of_one_class_is_scored_against_polygons(tmp_path: Path) -> None:
    legend = Legend(name="roofs", classes=(ISPRS[2].model_copy(update={"id": 1}),))
    guess = np.zeros(SHAPE, np.uint8)
    guess[10:20, 10:20] = 1
    facts = evaluate(save(tmp_path / "p.tif", guess), boxes(tmp_path / "r.geojson", [(10, 10, 10, 20)], ()), legend=legend)
    assert facts["measures"]["miou"] == 0.5
    assert facts["measures"]["pixel_accuracy"] == 1 - 100 / guess.size


def test_confidence_is_judged_where_labels_are_single(tmp_path: Path) -> None:
    truth = patches(10)
    guess, sure = blurred(truth, 10), np.random.default_rng(3).integers(0, 256, SHAPE).astype(np.uint8)
    files = save_own(tmp_path / "a_classes.tif", guess), save(tmp_path / "r.tif", truth)
    facts = evaluate(*files, confidence=save(tmp_path / "c.tif", sure, nodata=255), plots=tmp_path / "plots")
    scored = (truth > 0) & (guess > 0) & (sure < 255)
    values, right = sure[scored] / 254, (truth == guess)[scored]
    place = np.maximum(np.ceil(sure[scored].astype(int) * 15 / 254) - 1, 0)
    ece = sum((place == at).mean() * abs(right[place == at].mean() - values[place == at].mean()) for at in np.unique(place))
    assert facts["measures"]["ece"] == facts["calibration"]["ece"] == pytest.approx(ece, abs=1e-9)
    for name in ("confusion.png", "reliability.png"):
        picture = np.asarray(Image.open(tmp_path / "plots" / name).convert("RGB"))
        assert np.unique(picture.reshape(-1, 3), axis=0).shape[0] > 20


def test_only_labels_in_the_area_count(tmp_path: Path) -> None:
    truth = patches(12)
    guess, area = blurred(truth, 12), boxes(tmp_path / "area.geojson", [(11, 7, 30, 20)], (), "EPSG:4326")
    files = save_own(tmp_path / "p.tif", guess), save(tmp_path / "r.tif", truth)
    inside = np.s_[11:41, 7:27]
    facts = evaluate(*files, area=area)
    assert (
        facts["confusion"]["counts"]
        == sklearn.metrics.confusion_matrix(truth[inside].ravel(), guess[inside].ravel(), labels=range(7))[1:].tolist()
    )
    buildings = boxes(tmp_path / "b.gpkg", [(12, 8, 5, 5), (50, 8, 5, 5), (8, 8, 10, 10)], ())
    assert evaluate(buildings, buildings, area=area)["classes"]["polygon"]["true_positives"] == 2


# --- several scenes ---


def make_folders(tmp_path: Path, scenes: int = 4) -> tuple[Path, Path]:
    folders = tmp_path / "maps", tmp_path / "truth"
    for folder in folders:
        folder.mkdir()
    for number in range(scenes):
        truth = patches(number)
        save_own(folders[0] / f"s{number}_classes.tif", blurred(truth, number + number % 2))
        save(folders[0] / f"s{number}_confidence.tif", np.full(SHAPE, 200, np.uint8), nodata=255)
        save(folders[1] / f"s{number}_label.tif", truth)
    return folders


def test_folders_and_lists_add_their_counts_and_have_intervals(tmp_path: Path) -> None:
    maps, truth = make_folders(tmp_path)
    facts = evaluate(maps, truth, confidence=maps, draws=40)
    singles = [evaluate(maps / f"s{n}_classes.tif", truth / f"s{n}_label.tif") for n in range(4)]
    assert np.array_equal(facts["confusion"]["counts"], np.sum([each["confusion"]["counts"] for each in singles], axis=0))
    assert [each["measures"]["miou"] for each in facts["scenes"]] == [each["measures"]["miou"] for each in singles]
    for name, value in facts["measures"].items():
        low, high = facts["intervals"]["measures"][name]
        assert low <= value <= high, name
    low, high = facts["intervals"]["measures"]["miou"]
    assert min(each["measures"]["miou"] for each in singles) <= low < high <= max(each["measures"]["miou"] for each in singles)
    assert facts["intervals"] == evaluate(maps, truth, confidence=maps, draws=40)["intervals"]
    assert facts["intervals"] != evaluate(maps, truth, confidence=maps, draws=40, seed=1)["intervals"]
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        rows = [(f"maps/s{n}_classes.tif", f"truth/s{n}_label.tif", f"maps/s{n}_confidence.tif") for n in range(4)]
        csv.writer(file).writerows([("prediction", "reference", "confidence"), *rows])
    listed = evaluate(tmp_path / "pairs.csv", draws=40)
    assert {key: listed[key] for key in ("measures", "intervals", "classes")} == {
        key: facts[key] for key in ("measures", "intervals", "classes")
    }


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=2, max_size=6), st.integers(0, 99))
def test_intervals_are_percentiles_of_redrawn_scenes(pairs: list[tuple[int, int]], seed: int) -> None:
    counts = np.array(pairs)

    def figures(total: np.ndarray) -> np.ndarray:
        return np.array([total[0] / total[1], np.nan, np.nan if total[0] % 2 else total[0]])

    low, high = interval(list(counts), figures, draws=50, seed=seed)
    weights = np.random.default_rng(seed).multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), 50)
    drawn = np.array([figures(sum(w * c for w, c in zip(row, counts, strict=True))) for row in weights])
    for at in (0, 2):
        known = drawn[~np.isnan(drawn[:, at]), at]
        expected = np.percentile(known, (2.5, 97.5)) if known.size else (np.nan, np.nan)
        np.testing.assert_allclose((low[at], high[at]), expected, rtol=0, atol=1e-9)
    assert np.isnan([low[1], high[1]]).all()


# --- polygons ---


def test_polygons_of_a_map_match_themselves(tmp_path: Path) -> None:
    raster = save_own(tmp_path / "m.tif", patches(11))
    for name in ("a.gpkg", "b.fgb"):
        vectorize(raster, tmp_path / name)
    facts = evaluate(tmp_path / "a.gpkg", tmp_path / "b.fgb")
    assert facts["protocol"] == "spacenet"
    assert facts["measures"] == {"f1": 1.0, "precision": 1.0, "recall": 1.0, "mean_f1": 1.0}
    assert list(facts["classes"]) == sorted(c.name for c in ISPRS.classes)
    only = evaluate(tmp_path / "a.gpkg", tmp_path / "b.fgb", class_name="building")
    assert only["classes"]["building"] == facts["classes"]["building"]


def test_polygons_are_matched_by_confidence_in_any_crs_and_format(tmp_path: Path) -> None:
    truth = boxes(tmp_path / "r.geojson", [(0, 0, 10, 10), (20, 20, 10, 10), (40, 0, 4, 4)], (), "EPSG:4326")
    rows = [(0, 0, 10, 10, 0.3), (0, 0, 10, 9, 0.9), (20, 24, 10, 10, 0.8), (41, 0, 4, 4, 0.1)]
    guess = boxes(tmp_path / "p.gpkg", rows, ("confidence",))
    facts = evaluate(guess, truth)
    assert facts["classes"]["polygon"] == {
        "true_positives": 2,
        "false_positives": 2,
        "false_negatives": 1,
        "f1": 4 / 7,
        "precision": 0.5,
        "recall": 2 / 3,
    }
    assert evaluate(guess, truth, iou=0.4)["classes"]["polygon"]["true_positives"] == 3
    assert evaluate(guess, truth, min_area=0.5)["classes"]["polygon"]["false_negatives"] == 1  # 16 pixels of 0.01 m2 are no more


def test_spacenet_tables_are_scored_image_by_image(tmp_path: Path) -> None:
    head = ("ImageId", "BuildingId", "PolygonWKT_Pix", "Confidence")
    square = shapely.box(0, 0, 10, 10).wkt
    truth = [
        ("img1", 1, square, 1),
        ("img2", 1, square, 1),
        ("img2", 2, shapely.box(50, 50, 54, 54).wkt, 1),
        ("img3", -1, "POLYGON EMPTY", 1),
    ]
    guess = [("img1", 1, square, 1), ("img3", 1, square, 1)]
    for name, rows in (("r.csv", truth), ("p.csv", guess)):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([head, *rows])
    facts = evaluate(tmp_path / "p.csv", tmp_path / "r.csv")
    assert {each["name"]: each["measures"]["true_positives"] for each in facts["scenes"]} == {"img1": 1, "img2": 0, "img3": 0}
    assert facts["classes"]["polygon"]["false_negatives"] == 1  # of 100 pixels; that of 16 is too small
    assert facts["measures"]["f1"] == 0.5
    assert facts["intervals"]["measures"]["f1"] == [0.0, 1.0]


# --- refusals ---


def refused(kind: type[GeosegError], words: str, *args: Any, **options: Any) -> None:
    with pytest.raises(kind, match=words):
        evaluate(*args, **options)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    truth = patches(0)
    ours, theirs = save_own(tmp_path / "p.tif", truth), save(tmp_path / "r.tif", truth)
    moved = save(tmp_path / "moved.tif", truth, transform=PLACE @ Affine.translation(3, 0))
    nothing = save(tmp_path / "nothing.tif", np.zeros(SHAPE, np.uint8))
    foreign = save(tmp_path / "foreign.tif", np.where(truth == 6, 9, truth).astype(np.uint8))
    lines = boxes(tmp_path / "lines.gpkg", [(0, 0, 10, 10, "roof")])
    smaller = save(tmp_path / "smaller.tif", truth[:50])
    refused(SceneError, r"smaller.tif: has 50 x 50 pixels, not 60 x 50, as .*p.tif has", ours, smaller)
    refused(SceneError, r"moved.tif: has another place, 3 pixels away, as .*p.tif has", ours, moved)
    refused(SceneError, "no such file", ours, tmp_path / "gone.tif")
    refused(OptionsError, r"nothing.tif: nothing is labelled", ours, nothing)
    refused(OptionsError, r"foreign.tif: holds the value 9, legend 'p' has 1, 2, 3, 4, 5, 6", ours, foreign)
    refused(OptionsError, r"class 'roof'; legend 'p' has impervious, building", ours, lines)
    refused(OptionsError, r"with --class: impervious, building", ours, boxes(tmp_path / "plain.gpkg", [(0, 0, 9, 9)], ()))
    refused(OptionsError, r"protocol 'isprs' is unknown; choose one of plain, isprs-eroded", ours, theirs, protocol="isprs")
    refused(OptionsError, r"'spacenet' is about polygons, the prediction is of rasters", ours, theirs, protocol="spacenet")
    refused(OptionsError, r"'plain' is about rasters, the prediction is of polygons; choose spacenet", lines, lines, protocol="plain")
    refused(OptionsError, r"r.tif: is no vector file, but .*lines.gpkg is", lines, theirs)
    refused(OptionsError, r"iou is 0; expected more than 0", lines, lines, iou=0)
    refused(OptionsError, r"is a folder, .*r.tif is none", tmp_path, theirs)
    refused(OptionsError, r"nil.yaml: no such legend", ours, theirs, legend=tmp_path / "nil.yaml")
    refused(OptionsError, r"p.tif: not a readable CSV file; without a reference", ours)


def test_maps_of_other_classes_are_not_scored_by_their_numbers(tmp_path: Path) -> None:
    legend = Legend.from_yaml(Path(__file__).parents[1] / "configs" / "legends" / "buildings.yaml")
    ours = save_own(tmp_path / "p.tif", np.minimum(patches(0), 2), legend)
    theirs = save(tmp_path / "r.tif", patches(0))
    refused(
        OptionsError,
        r"p.tif: has the classes 1 background, 2 building; expected 1 impervious, 2 building",
        ours,
        theirs,
        protocol="isprs-full",
    )


def test_vector_files_that_are_none_are_refused(tmp_path: Path) -> None:
    sound = boxes(tmp_path / "r.gpkg", [(0, 0, 9, 9)], ())
    for name, text, words in (
        ("a.gpkg", "hello", r"is no .gpkg file \(it starts with b'hello'\)"),
        ("a.geojson", "<OGRVRTDataSource/>", "is no .geojson file"),
        ("a.csv", "a,b\n1,2\n", "has the columns a, b; expected PolygonWKT_Pix"),
        ("b.csv", 'WKT\n"POLYGON ((0 0, 1"\n', "holds something else than WKT"),
        ("c.csv", "WKT,ImageId\nPOLYGON EMPTY\n", "line 2 has 1 fields, the first has 2"),
    ):
        (tmp_path / name).write_text(text)
        refused(OptionsError, words, tmp_path / name, sound)
    refused(OptionsError, r"no such file; expected polygons", tmp_path / "gone.gpkg", sound)
    mixed = boxes(tmp_path / "m.gpkg", [(0, 0, 9, 9, "building")])
    refused(OptionsError, r"r.gpkg: has polygons without a class beside others", mixed, sound)
    refused(OptionsError, r"no class in common", mixed, boxes(tmp_path / "t.gpkg", [(0, 0, 9, 9, "tree")]))


# --- the door ---


def test_the_command_prints_a_table_or_json_and_runs_are_compared(tmp_path: Path) -> None:
    maps, truth = make_folders(tmp_path, 2)
    done = geoseg("evaluate", maps, truth, "--draws", 20, "--json", tmp_path / "first.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Protocol plain: every labelled pixel counts")
    assert any(line.startswith("miou") and "[" in line for line in done.stdout.splitlines())
    assert any(line.startswith("building") for line in done.stdout.splitlines())
    first = json.loads((tmp_path / "first.json").read_text())
    second = json.loads(geoseg("evaluate", maps / "s0_classes.tif", truth / "s0_label.tif", "--json", "-").stdout)
    (tmp_path / "second.json").write_text(json.dumps(second))
    facts = compare([tmp_path / "first.json", tmp_path / "second.json"])
    rows = {row["measure"]: row for row in facts["rows"]}
    assert facts["runs"] == ["first", "second"]
    assert rows["miou"]["values"] == [first["measures"]["miou"], second["measures"]["miou"]]
    assert rows["miou"]["intervals"] == [first["intervals"]["measures"]["miou"], None]
    assert rows["iou building"]["values"] == [each["classes"]["building"]["iou"] for each in (first, second)]
    assert facts["warnings"]
    shown = geoseg("compare", tmp_path / "first.json", tmp_path / "second.json")
    assert any(line.split()[:2] == ["iou", "building"] for line in shown.stdout.splitlines())
    (tmp_path / "other.json").write_text(json.dumps({**second, "protocol": "isprs-full"}))
    with pytest.raises(OptionsError, match=r"runs differ in protocol: .*first.json has plain, .*other.json has isprs-full"):
        compare([tmp_path / "first.json", tmp_path / "other.json"])
    with pytest.raises(OptionsError, match="is not what geoseg evaluate --json writes"):
        (tmp_path / "none.json").write_text("{}")
        compare([tmp_path / "none.json"])
    refusal = geoseg("evaluate", maps, truth, "--protocol", "spacenet")
    assert refusal.returncode == 2
    assert "is about polygons" in refusal.stderr


def test_regions_between_borders_as_isbi_counts_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    expected = []
    for folder in ("maps", "truth"):
        (tmp_path / folder).mkdir()
    for name in ("a", "b"):
        truth = np.ones(SHAPE, np.uint8)
        truth[::12], truth[:, ::10] = 2, 2
        map_ = np.where(rng.random(SHAPE) < 0.03, 3 - truth, truth).astype(np.uint8)
        truth[-9:, -9:] = 0
        save(tmp_path / "maps" / f"{name}.tif", map_)
        save(tmp_path / "truth" / f"{name}.tif", truth)
        expected.append(errors(map_ == 1, truth != 2, truth > 0).named())
    facts = evaluate(tmp_path / "maps", tmp_path / "truth", protocol="isbi", class_name="class_2", boundary_px=0)
    assert [{name: scene["measures"][name] for name in expected[0]} for scene in facts["scenes"]] == expected
    for name in expected[0]:
        assert facts["measures"][name] == pytest.approx((expected[0][name] + expected[1][name]) / 2)
        assert 0 < facts["measures"][name] < 0.9
    assert facts["measures"]["pixel_error"] == pytest.approx(1 - facts["measures"]["pixel_accuracy"])
    with pytest.raises(OptionsError, match="say with --class which class these are: class_1, class_2"):
        evaluate(tmp_path / "maps", tmp_path / "truth", protocol="isbi")
    told = geoseg("evaluate", tmp_path / "maps", tmp_path / "truth", "--protocol", "isbi", "--class", "class_2")
    assert "rand error" in told.stdout.lower().replace("_", " ")
