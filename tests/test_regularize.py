from dataclasses import replace

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg.polygons import Arcs, assemble, trace
from geoseg.polygons.join import join
from geoseg.polygons.regularize import LEAST_IOU, regularize
from geoseg.polygons.simplify import simplify
from geoseg.polygons.smooth import smooth
from geoseg.window import Window

BUILDING = 2


def arcs_of(classes: np.ndarray) -> Arcs:
    return join(trace([(Window.of(classes.shape), classes, None)], classes.shape))


def rectangle(shape: tuple[int, int], middle: tuple[float, float], sides: tuple[float, float], degrees: float) -> np.ndarray:
    """The pixels whose centres lie in a turned rectangle."""
    rows, cols = np.mgrid[: shape[0], : shape[1]] + 0.5
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    along = cos * (cols - middle[0]) + sin * (rows - middle[1])
    across = cos * (rows - middle[1]) - sin * (cols - middle[0])
    return (abs(along) < sides[0] / 2) & (abs(across) < sides[1] / 2)


@st.composite
def towns(draw: st.DrawFn) -> np.ndarray:
    """Class rasters with buildings: noise, or turned houses with courtyards and islands on grounds of several classes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = tuple(rng.integers(1, 15, 2)) if draw(st.booleans()) else tuple(rng.integers(50, 100, 2))
    ground = draw(st.sampled_from(["one", "blots", "noise"]))
    classes = np.ones(shape, np.uint8)
    if ground == "noise":
        classes = rng.choice([0, 1, 2, 3], shape, p=rng.dirichlet([0.1, 2, 0.5, 0.5])).astype(np.uint8)
    elif ground == "blots":
        for _ in range(12):
            row, col = rng.integers(shape[0]), rng.integers(shape[1])
            classes[row : row + rng.integers(1, 40), col : col + rng.integers(1, 40)] = rng.choice([0, 1, 1, 3, 3, 4])
    for _ in range(draw(st.integers(1, 8))):
        middle = (rng.uniform(0.1, 0.9) * shape[1], rng.uniform(0.1, 0.9) * shape[0])
        sides, degrees = rng.uniform(4, 40, 2), rng.uniform(0, 90)
        house = rectangle(shape, middle, sides, degrees)
        if rng.random() < 0.4:
            house &= ~rectangle(shape, (middle[0] + sides[0] / 2, middle[1] + sides[1] / 2), sides, degrees)
        classes[house] = BUILDING
        if rng.random() < 0.4:
            classes[rectangle(shape, middle, sides * rng.uniform(0, 0.8, 2), degrees)] = rng.choice([1, 3, 5])
        if rng.random() < 0.3:
            classes[rectangle(shape, middle, sides * rng.uniform(0, 0.4, 2), 0)] = BUILDING
    for _ in range(draw(st.sampled_from([0, 0, 5, 60]))):
        classes[rng.integers(shape[0]), rng.integers(shape[1])] = rng.integers(0, 4)
    return classes


def checked(
    arcs: Arcs, traced: Arcs, tolerance: float, scale: tuple[float, float] = (1.0, 1.0), ids: tuple[int, ...] = (BUILDING,)
) -> Arcs:
    """Regularise buildings, and see that all that must hold does."""
    chosen = np.isin(arcs.class_id, ids)
    done = regularize(arcs, traced, chosen, tolerance, scale)
    raw, before, after = (assemble(a).polygons() for a in (traced, arcs, done))

    assert shapely.is_valid(after).all()
    assert shapely.coverage_is_valid(after)
    assert shapely.area(after).sum() == pytest.approx(arcs.pixels.sum(), abs=1e-6)
    changed = chosen & ~shapely.equals_exact(before, after, 0)
    common = shapely.area(shapely.intersection(raw[changed], after[changed]))
    iou = common / (shapely.area(raw[changed]) + shapely.area(after[changed]) - common)
    assert (iou >= LEAST_IOU - 1e-9).all()
    assert len(done.offsets) == len(arcs.offsets)
    border = np.flatnonzero((arcs.left < 0) | (arcs.right < 0))
    for arc in border:
        assert np.array_equal(piece(done, arc), piece(arcs, arc))
    return done


def piece(arcs: Arcs, arc: int) -> np.ndarray:
    return arcs.points[arcs.offsets[arc] : arcs.offsets[arc + 1]]


def corners(polygon: shapely.Polygon) -> tuple[int, np.ndarray]:
    """Number of corners of a polygon's shell, and how far each is from a right angle, degrees."""
    ring = shapely.get_coordinates(shapely.simplify(polygon.exterior, 1e-6))[:-1]
    steps = np.diff(ring, axis=0, append=ring[:1])
    turns = np.degrees(np.arctan2(steps[:, 1], steps[:, 0]))
    return len(ring), abs((np.diff(turns, append=turns[:1])) % 180 - 90)


@settings(max_examples=120)
@given(classes=towns(), tolerance=st.sampled_from([0.5, 1.5, 3.0, 6.0]), ids=st.sampled_from([(2,), (2, 3), (1, 2, 3)]))
def test_what_is_traced_stays_a_coverage(classes, tolerance, ids):
    traced = arcs_of(classes)
    checked(traced, traced, tolerance, ids=ids)


@settings(max_examples=120)
@given(
    classes=towns(),
    tolerance=st.sampled_from([1.5, 3.0, 6.0]),
    how=st.sampled_from(["smooth", "dp", "vw", "smooth dp"]),
    scale=st.sampled_from([(1.0, 1.0), (0.3, 0.3), (0.8, 1.1)]),
)
def test_what_is_smoothed_and_simplified_stays_a_coverage(classes, tolerance, how, scale):
    traced = arcs_of(classes)
    arcs = smooth(traced) if "smooth" in how else traced
    if how != "smooth":
        arcs = simplify(arcs, tolerance * scale[0], "vw" if how == "vw" else "dp", scale)
    checked(arcs, traced, tolerance * scale[0], scale)


@settings(max_examples=60)
@given(
    degrees=st.floats(0, 90),
    sides=st.tuples(st.floats(15, 40), st.floats(15, 40)),
    shift=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    smoothed=st.booleans(),
    split=st.integers(31, 39),
)
def test_turned_rectangles_come_back(degrees, sides, shift, smoothed, split):
    """Also where the boundary between two other classes ends at them."""
    shape = (70, 70)
    classes = np.ones(shape, np.uint8)
    classes[:, split:] = 3
    house = rectangle(shape, (35 + shift[0], 35 + shift[1]), sides, degrees)
    classes[house] = BUILDING
    traced = arcs_of(classes)

    done = checked(smooth(traced) if smoothed else traced, traced, 1.5)

    number, off = corners(assemble(done).polygons()[done.class_id == BUILDING][0])
    assert number == 4
    assert (off < 0.5).all()
    found = assemble(done).polygons()[done.class_id == BUILDING][0]
    raw = assemble(traced).polygons()[traced.class_id == BUILDING][0]
    assert found.intersection(raw).area / found.union(raw).area > 0.93


@pytest.mark.parametrize("degrees", range(0, 90, 6))
def test_walls_at_right_angles_keep_their_number(degrees):
    shape = (100, 100)
    wing = rectangle(shape, (50, 50), (60, 50), degrees)
    out = np.radians(degrees)
    cut = (50 + 30 * np.cos(out) - 25 * np.sin(out), 50 + 30 * np.sin(out) + 25 * np.cos(out))
    classes = np.where(wing & ~rectangle(shape, cut, (50, 44), degrees), BUILDING, 1).astype(np.uint8)
    classes[rectangle(shape, (50 - 12 * np.cos(out), 50 - 12 * np.sin(out)), (8, 8), degrees)] = 3
    traced = arcs_of(classes)

    done = checked(smooth(traced), traced, 2.0)

    house = assemble(done).polygons()[done.class_id == BUILDING][0]
    number, off = corners(house)
    assert number == 6
    assert (off < 0.5).all()
    assert len(house.interiors) == 1


def test_long_diagonal_walls_stay():
    rows, cols = np.mgrid[:80, :80] + 0.5
    classes = np.where((rows > 10) & (rows < 70) & (cols > 10) & (cols < 70) & (rows + cols > 55), BUILDING, 1).astype(np.uint8)
    traced = arcs_of(classes)

    done = checked(traced, traced, 1.5)

    house = assemble(done).polygons()[done.class_id == BUILDING][0]
    assert corners(house)[0] == 5
    assert sorted(np.round(corners(house)[1], 0)) == [0, 0, 0, 45, 45]


def test_nothing_is_swallowed():
    """A pole stands where the wall would be, and a shed in a niche of the house."""
    classes = np.ones((60, 60), np.uint8)
    classes[10:50, 10:50] = BUILDING
    classes[10:12, 20:22] = 1
    classes[10, 20] = 3
    classes[40:44, 49:51] = 4
    traced = arcs_of(classes)

    done = checked(traced, traced, 6.0)

    assert (assemble(done).areas_px > 0.5 * traced.pixels).all()


def test_a_house_at_the_border_of_the_data_stays():
    classes = np.ones((60, 60), np.uint8)
    classes[rectangle(classes.shape, (0, 30), (40, 30), 30)] = BUILDING
    traced = arcs_of(classes)

    done = checked(traced, traced, 1.5)

    assert np.array_equal(done.points, traced.points)


@settings(max_examples=30)
@given(classes=towns())
def test_faces_that_are_not_chosen_stay_if_none_is(classes):
    traced = arcs_of(classes)
    done = regularize(traced, traced, np.zeros(len(traced.class_id), np.bool_), 1.5)

    assert done.points.dtype == np.float64
    assert np.array_equal(done.points, traced.points)
    assert np.array_equal(done.offsets, traced.offsets)


@settings(max_examples=40)
@given(classes=towns(), tolerance=st.sampled_from([1.5, 4.0]))
def test_a_scale_is_only_a_unit(classes, tolerance):
    traced = arcs_of(classes)
    chosen = traced.class_id == BUILDING

    pixels = regularize(traced, traced, chosen, tolerance)
    metres = regularize(traced, traced, chosen, tolerance / 4, (0.25, 0.25))

    assert np.array_equal(pixels.offsets, metres.offsets)
    assert pixels.points == pytest.approx(metres.points)
    assert replace(pixels, points=traced.points, offsets=traced.offsets).nodes == traced.nodes
