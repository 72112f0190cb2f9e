"""Labels that are points, boxes, footprints with rims, and colours."""

from __future__ import annotations

import itertools
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from geoseg.datasets import LabelledScene, read_set
from geoseg.datasets.scenes import Layer
from geoseg.datasets.vectors import Parts, VectorLabels
from geoseg.errors import OptionsError
from geoseg.legend import ISPRS, Colours, Legend, LegendClass
from tests import layouts
from tests.conftest import make_scene
from tests.test_layouts import BUILDINGS, LEGENDS, RGB, _own, whole

PLACE = (350_000, 3_060_000)  # the upper left corner of scenes of ``make_scene``, in EPSG:32645, pixels of 0.1 m
CARS = {"red": (2.0, 3.0), "blue": (7.05, 5.05)}  # metres right and down


def _disks(radius_m: float) -> np.ndarray:
    """(96, 96) bool, pixels of 0.1 m whose centre is so near to a car."""
    y, x = np.mgrid[0.05:9.6:0.1, 0.05:9.6:0.1]
    return np.logical_or.reduce([np.hypot(x - right, y - down) < radius_m for right, down in CARS.values()])


def _points() -> list[tuple[float, float]]:
    return [(PLACE[0] + right, PLACE[1] - down) for right, down in CARS.values()]


@pytest.mark.parametrize("suffix", ["gpkg", "geojson", "xy.csv", "lonlat.csv", "wkt.csv"])
def test_points_become_disks(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cars.{suffix}"
    frame = geopandas.GeoDataFrame({"paint": list(CARS)}, geometry=[shapely.Point(xy) for xy in _points()], crs="EPSG:32645")
    degrees = frame.to_crs("EPSG:4326")
    match suffix:
        case "gpkg" | "geojson":
            degrees.to_file(path)
        case "xy.csv":
            path.write_text("paint,x,y\n" + "".join(f"{c},{x},{y}\n" for c, (x, y) in zip(CARS, _points(), strict=True)))
        case "lonlat.csv":
            rows = zip(CARS, degrees.geometry.x, degrees.geometry.y, strict=True)
            path.write_text("Lat,Lon,paint\n" + "".join(f"{y:.9f},{x:.9f},{c}\n" for c, x, y in rows))
        case _:
            path.write_text("paint,WKT\n" + "".join(f"{c},POINT({x} {y})\n" for c, (x, y) in zip(CARS, _points(), strict=True)))
    others = ["impervious", "building", "low_vegetation", "tree", "clutter"]
    polygons = {"path": path.name, "column": "paint", "radius_m": 1.2, "outside": others, "outside_m": 1.0}
    table = {"polygons": polygons, "classes": {"red": ["car"], "blue": ["car", "clutter"]}}
    found = read_set(_own(tmp_path, table), "scenes", ISPRS, RGB)
    allowed = found.allowed[whole(found.images["a"])[2]]
    assert (allowed[..., 4] != _disks(1.2)).mean() < 0.003  # a disk is a polygon
    assert (allowed.any(-1) != _disks(2.2)).mean() < 0.005
    assert allowed[30, 20].tolist() == [False] * 4 + [True, False]
    assert allowed[50, 70].tolist() == [False] * 4 + [True, True]
    assert allowed[30, 36].tolist() == [True, True, True, True, False, True]


def test_points_without_a_radius_and_tables_without_a_place_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cars.csv").write_text("x,y\n350001,3059999\n")
    table = {"polygons": {"path": "cars.csv"}, "classes": ["car"]}
    with pytest.raises(OptionsError, match=r"the first is a Point\); expected polygons only, or points with radius_m"):
        whole(read_set(_own(tmp_path, table), "scenes", ISPRS, RGB).images["a"])
    (tmp_path / "cars.csv").write_text("east,north\n350001,3059999\n")
    with pytest.raises(OptionsError, match="has the columns east, north; expected x and y, lon and lat, or WKT"):
        whole(read_set(tmp_path, "scenes", ISPRS, RGB).images["a"])


def test_rims_and_contacts_are_what_distances_say(tmp_path: Path) -> None:
    boxes = [shapely.box(5, 5, 25, 30), shapely.box(28, 8, 50, 25), shapely.box(50, 8, 60, 25), shapely.box(5, 45, 40, 58)]
    geopandas.GeoDataFrame(geometry=boxes, crs="EPSG:32645").to_file(tmp_path / "houses.gpkg")
    path = make_scene(tmp_path / "scene.tif", np.zeros((3, 70, 70), np.uint8), colours=RGB)  # pixels of 0.1 m
    labels = VectorLabels(tmp_path / "houses.gpkg", 1, {None: 2}, in_pixels=True, parts=Parts(3, 0.2, 4, 0.6))
    codes = whole(LabelledScene("a", (Layer(path, RGB),), labels))[2]
    y, x = np.mgrid[0.5:70, 0.5:70]
    centres = shapely.points(x, y)
    near = np.array([shapely.distance(box, centres) for box in boxes])
    inside, rim = near.min(0) == 0, np.array([shapely.distance(box.exterior, centres) for box in boxes]).min(0)
    expected = np.where(inside, np.where(rim < 2, 3, 2), 1)
    expected[np.sort(near, 0)[1] < 3] = 4
    assert (codes != expected).mean() < 0.005  # round corners are polygons
    assert set(np.unique(codes)) == {1, 2, 3, 4}
    assert (codes[10:25, 25:28] == 4).all()  # a gap of 0.3 m
    assert (codes[10:25, 48:52] == 4).all()  # a shared wall
    assert ndimage.label(codes == 2)[1] == len(boxes)


def test_spacenet_has_borders_and_contacts_if_asked(tmp_path: Path) -> None:
    legend = Legend.from_yaml(LEGENDS / "building_parts.yaml")
    layouts.spacenet(tmp_path)
    found = read_set(tmp_path, "spacenet", legend, RGB, border_m=0.6, contact_m=12.0)
    plain = read_set(tmp_path, "spacenet", BUILDINGS, RGB)
    for name, image in found.images.items():
        parts, houses = whole(image)[2], whole(plain.images[name])[2] == 2
        assert (houses[np.isin(parts, (2, 3))]).all()
        assert not houses[parts == 1].any()
        if houses.any():
            thin = ndimage.binary_erosion(houses, iterations=2)
            assert np.array_equal(parts[parts != 4] == 2, thin[parts != 4])
            assert set(np.unique(parts)) == {1, 2, 3, 4}
    assert found.allowed[1:5].tolist() == np.eye(4, dtype=bool).tolist()
    with pytest.raises(OptionsError, match="has no class 'border'"):
        read_set(tmp_path, "spacenet", BUILDINGS, RGB, border_m=0.6)
    with pytest.raises(OptionsError, match="contact_m without border_m"):
        read_set(tmp_path, "spacenet", legend, RGB, contact_m=3.0)
    with pytest.raises(OptionsError, match="'border_m' belongs to the layouts spacenet"):
        read_set(tmp_path, "loveda", legend, RGB, border_m=0.6)


@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=12, unique=True), st.data())
def test_colours_of_any_legend_are_told_apart(rgbs, data):
    rgbs = [rgb for rgb in rgbs if rgb != (0, 0, 0)] or [(1, 2, 3)]
    classes = tuple(LegendClass(id=i, name=f"c{i}", title=f"C{i}", colour="#{:02x}{:02x}{:02x}".format(*c)) for i, c in enumerate(rgbs, 1))
    colours = Colours(Legend(name="any", classes=classes), [code + 100 for code in range(len(rgbs))])
    picture = np.array([(0, 0, 0), *rgbs], np.uint8).T[:, :, None]
    valid = np.ones(picture.shape[1:], bool)
    assert colours.decode(picture, valid, "a", (0, 0))[:, 0].tolist() == [0, *range(100, 100 + len(rgbs))]
    odd = np.array(data.draw(st.tuples(*[st.integers(0, 255)] * 3)))
    near = any(np.abs(odd - known).max() <= 32 for known in itertools.chain([(0, 0, 0)], rgbs))
    if not near:
        with pytest.raises(OptionsError, match=r"a: pixel row 5, column 7 has the colour"):
            colours.decode(odd.astype(np.uint8)[:, None, None], np.ones((1, 1), bool), "a", (5, 7))
        assert colours.decode(odd.astype(np.uint8)[:, None, None], np.zeros((1, 1), bool), "a", (5, 7)).tolist() == [[0]]


def test_published_labels_may_be_a_little_off():
    picture = np.array([[252, 255, 0], [0, 31, 255], [7, 0, 0], [225, 230, 250]], np.uint8).T[:, None]
    assert Colours(ISPRS, ISPRS.ids).decode(picture, np.ones((1, 4), bool), "a", (0, 0)).tolist() == [[5, 2, 0, 1]]
