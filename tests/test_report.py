"""The quicklook: true colours, true lengths, and a picture for whatever scene comes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geoseg import report
from geoseg.errors import OutputError
from geoseg.legend import ISPRS, Legend, LegendClass
from geoseg.report import SIDE, panel_shape, write_quicklook

GREY = 100


def draw(path: Path, shape: tuple[int, int], **options: object) -> np.ndarray:
    """A grey scene whose left half is building and right half tree, as ``(H, W, 3)``."""
    height, width = panel_shape(shape)
    facts: dict[str, object] = {
        "image": np.full((3, height, width), GREY, np.uint8),
        "valid": np.ones((height, width), bool),
        "classes": np.where(np.arange(width) < width / 2, 2, 4).astype(np.uint8)[np.newaxis].repeat(height, 0),
        "legend": ISPRS,
        "counts": np.bincount([2, 4, 4], minlength=256),
        "title": "scene.tif",
    }
    write_quicklook(path, **(facts | options))  # type: ignore[arg-type]
    with Image.open(path) as picture:
        assert picture.mode == "RGB"
        return np.asarray(picture)


def panels(shape: tuple[int, int]) -> tuple[report.Box, report.Box]:
    return report._arrange(panel_shape(shape), report._entries(ISPRS, np.ones(256, np.int64), None)).panels


def inside(picture: np.ndarray, box: report.Box) -> np.ndarray:
    return picture[box[1] + 1 : box[3] - 1, box[0] + 1 : box[2] - 1]


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 40000), width=st.integers(1, 40000), classes=st.integers(1, 255), words=st.text(max_size=300))
def test_any_scene_has_a_picture(tmp_path_factory: pytest.TempPathFactory, height: int, width: int, classes: int, words: str) -> None:
    items = [LegendClass(id=i, name=f"c{i}", title=words[:60], colour=f"#{i:02x}80ff") for i in range(1, classes + 1)]
    path = tmp_path_factory.mktemp("report") / "q.png"
    legend = Legend(name="many", classes=tuple(items))
    shape = panel_shape((height, width))
    ids = np.arange(shape[0] * shape[1], dtype=np.int64).reshape(shape) % (classes + 1)
    picture = draw(
        path,
        (height, width),
        legend=legend,
        classes=ids.astype(np.uint8),
        counts=np.bincount(ids.ravel(), minlength=256),
        title=words,
        subtitle=words,
        attribution=words,
        panel_pixel_m=0.1,
    )
    assert max(picture.shape) <= SIDE
    assert [item.name for item in path.parent.iterdir()] == ["q.png"]


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_scene_is_read_small_and_in_proportion(height: int, width: int) -> None:
    panel = panel_shape((height, width))
    assert panel[0] <= min(height, SIDE)
    assert panel[1] <= min(width, SIDE)
    if min(panel) > 20:
        assert panel[0] / panel[1] == pytest.approx(height / width, rel=0.06)


def test_the_first_panel_shows_the_image_and_the_second_the_classes_over_it(tmp_path: Path) -> None:
    shape = (500, 500)
    picture = draw(tmp_path / "q.png", shape)
    first, second = (inside(picture, box) for box in panels(shape))
    assert (first == GREY).all()
    for half, class_id in ((second[:, : second.shape[1] // 2 - 2], 2), (second[:, second.shape[1] // 2 + 2 :], 4)):
        wanted = 0.55 * np.array(ISPRS[class_id].rgb) + 0.45 * GREY
        assert np.abs(half - wanted).max() <= 1


def test_without_data_it_is_hatched(tmp_path: Path) -> None:
    shape = (300, 300)
    nothing = np.zeros(shape, bool)
    picture = draw(tmp_path / "q.png", shape, valid=nothing, classes=nothing.astype(np.uint8), counts=np.bincount([0] * 9, minlength=256))
    for box in panels(shape):
        assert set(np.unique(inside(picture, box)).tolist()) == {205, 236}


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "float64"])
def test_other_types_are_stretched_between_their_percentiles(tmp_path: Path, dtype: str) -> None:
    ramp = np.linspace(100, 3000, 201).astype(dtype)
    image = np.broadcast_to(ramp, (1, 200, 201)).copy()
    valid = np.ones(image.shape[1:], bool)
    valid[:2] = False
    image[:, :2] = np.nan if dtype.startswith("float") else 30000
    first = inside(
        draw(tmp_path / "q.png", image.shape[1:], image=image, valid=valid, classes=valid.astype(np.uint8)), panels((200, 201))[0]
    )
    row = first[-1, :, 0].astype(int)
    assert (np.diff(row) >= 0).all()
    assert (row[0], row[-1]) == (0, 255)
    assert row[len(row) // 2] == pytest.approx(127, abs=3)


def test_infinite_and_constant_bands_do_no_harm(tmp_path: Path) -> None:
    image = np.full((4, 30, 30), 5.0, np.float32)
    image[1] = np.inf
    draw(tmp_path / "q.png", (30, 30), image=image)


@pytest.mark.parametrize("pixel_m", [0.05, 0.13, 1.0, 7.7, 250.0])
def test_the_scale_bar_has_the_length_it_says(tmp_path: Path, pixel_m: float) -> None:
    shape = (700, 700)
    picture = draw(tmp_path / "q.png", shape, panel_pixel_m=pixel_m)
    row = picture[panels(shape)[1][3] + 20]
    length_m = np.flatnonzero((row[report._MARGIN :] > 60).any(-1))[0] * pixel_m
    mantissa = length_m / 10 ** np.floor(np.log10(length_m))
    assert min(abs(mantissa - step) / step for step in (1, 2, 5, 10)) < 0.012


def test_areas_lengths_and_shares_read_well() -> None:
    assert [report._area_text(a) for a in (0, 0.5, 12.34, 987.6, 4321, 43210, 5.2e6, 1.2345e10)] == [
        *("0 m²", "0.50 m²", "12.3 m²", "988 m²", "4,321 m²", "4.32 ha", "5.20 km²", "12,345 km²"),
    ]
    assert [report._length_text(length) for length in (0.05, 1, 200, 5000)] == ["5 cm", "1 m", "200 m", "5 km"]
    assert [report._share_text(share) for share in (0, 1e-9, 0.0421, 1)] == ["0 %", "< 0.1 %", "4.2 %", "100.0 %"]


def test_shares_are_of_the_valid_area_and_add_up() -> None:
    counts = np.zeros(256, np.int64)
    counts[[0, 2, 4]] = 50, 30, 20
    entries = report._entries(ISPRS, counts, {2: 300.0, 4: 200.0})
    assert sum(entry.part for entry in entries) == pytest.approx(1)
    assert [(e.title, e.share, e.amount) for e in entries if e.part] == [("Building", "60.0 %", "300 m²"), ("Tree", "40.0 %", "200 m²")]
    assert (entries[-1].title, entries[-1].share, entries[-1].amount) == ("No data", "50.0 %", "of scene")


def test_of_many_classes_the_largest_are_named() -> None:
    legend = Legend(name="l", classes=tuple(LegendClass(id=i, name=f"c{i}", title=f"C{i}", colour="#123456") for i in range(1, 41)))
    entries = report._entries(legend, np.arange(256, dtype=np.int64), None)
    assert [entry.title for entry in entries] == [*(f"C{i}" for i in range(30, 41)), "29 other classes"]
    assert sum(entry.part for entry in entries) == pytest.approx(1)


def test_the_picture_carries_its_source_and_is_the_same_again(tmp_path: Path) -> None:
    for name in "ab":
        draw(tmp_path / f"{name}.png", (90, 120), attribution="Imagery: ÖPAM, CC BY 4.0", title="q\x00\n\u202ename.tif")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.info["Copyright"] == "Imagery: ÖPAM, CC BY 4.0"
        assert picture.info["Title"] == "q name.tif"


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for target in ("missing/q.png", "folder"):
        with pytest.raises(OutputError, match=str(tmp_path / target)):
            draw(tmp_path / target, (9, 9))
    assert [item.name for item in tmp_path.rglob("*")] == ["folder"]
