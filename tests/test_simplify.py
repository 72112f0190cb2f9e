from dataclasses import replace

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from geoseg.polygons import assemble, trace
from geoseg.polygons.arcs import Arcs
from geoseg.polygons.join import join
from geoseg.polygons.simplify import simplify
from geoseg.polygons.smooth import smooth
from tests.test_polygons import cut, equal, layouts, rasters

METHODS = st.sampled_from(["dp", "vw"])
TOLERANCES = st.one_of(st.floats(0, 4), st.sampled_from([0.5, 1.0, 1.5, 20.0, 1e6, np.inf]))


@st.composite
def maps(draw: st.DrawFn) -> np.ndarray:
    """Class rasters: small figures, and larger ones of lumps of two pixels with a little noise."""
    if draw(st.booleans()):
        return draw(rasters())
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    lumps = rng.choice(4, (12, 12), p=rng.dirichlet([0.3, 1, 1, 1])).repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return np.where(rng.random(lumps.shape) < 0.1, rng.integers(0, 4, lumps.shape), lumps).astype(np.uint8)


def boundaries(classes: np.ndarray, smoothed: bool = False, windows=None) -> Arcs:
    arcs = join(trace(cut(classes, windows), classes.shape))
    return smooth(arcs) if smoothed else arcs


def run(arcs: Arcs, arc: int) -> np.ndarray:
    return arcs.points[arcs.offsets[arc] : arcs.offsets[arc + 1]]


def alone(points: np.ndarray) -> Arcs:
    """One open arc between two faces."""
    nothing = np.zeros(2)
    ends = {"left": np.array([0], np.int32), "right": np.array([1], np.int32), "start": np.array([1]), "end": np.array([7]), "nodes": 2}
    faces = {"class_id": np.array([1, 2], np.uint8), "pixels": nothing.astype(int), "centroid": np.zeros((2, 2))}
    return Arcs(points=points, offsets=np.array([0, len(points)]), **ends, **faces, confidence=nothing.astype(np.float32))


@st.composite
def graphs_of_functions(draw: st.DrawFn) -> np.ndarray:
    """Points (P, 2) from left to right, so that none is ever in another's way."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(2, 60))
    return np.stack([np.cumsum(rng.uniform(1, 3, count)), 30 + 10 * rng.standard_normal(count)], axis=1)


@settings(deadline=None, max_examples=300)
@given(classes=maps(), smoothed=st.booleans(), tolerance=TOLERANCES, method=METHODS)
def test_simplified_polygons_form_a_valid_coverage(classes, smoothed, tolerance, method):
    arcs = boundaries(classes, smoothed)
    simple = simplify(arcs, tolerance, method)
    polygons = assemble(simple).polygons()

    assert shapely.is_valid(polygons).all()
    assert shapely.coverage_is_valid(polygons)
    assert (shapely.area(polygons) > 0).all()
    assert len(polygons) == len(arcs.class_id)
    assert abs(shapely.area(polygons).sum() - np.count_nonzero(classes)) < 1e-6
    for arc in range(len(arcs.left)):
        before, after = run(arcs, arc), run(simple, arc)
        places = [np.flatnonzero((before == point).all(axis=1)) for point in after[1:-1]]
        assert all(len(place) == 1 for place in places)
        assert (np.diff([place[0] for place in places]) > 0).all()
        assert (after[[0, -1]] == before[[0, -1]]).all()
        assert len(after) == len(before) or min(arcs.left[arc], arcs.right[arc]) >= 0


@settings(deadline=None, max_examples=100)
@given(classes=maps(), method=METHODS)
def test_what_is_left_without_a_limit_could_not_leave(classes, method):
    arcs = simplify(boundaries(classes), np.inf, method)
    nodes = np.sort(np.stack([arcs.start, arcs.end], axis=1) >> 2, axis=1)
    straight = {tuple(pair) for pair, count in zip(nodes.tolist(), np.diff(arcs.offsets), strict=True) if count == 2}

    for arc in np.flatnonzero((arcs.left >= 0) & (arcs.right >= 0)):
        points = run(arcs, arc)
        is_ring = (points[0] == points[-1]).all()
        for a, b, c in zip(points[:-2], points[1:-1], points[2:], strict=True):
            others = arcs.points[~(arcs.points[:, None] == np.stack([a, b, c])).all(axis=2).any(axis=1)]
            turns = np.stack([(q - p)[0] * (others - p)[:, 1] - (q - p)[1] * (others - p)[:, 0] for p, q in ((a, b), (b, c), (c, a))])
            inside = (turns >= 0).all(axis=0) | (turns <= 0).all(axis=0)
            low, high = np.min([a, b, c], axis=0), np.max([a, b, c], axis=0)
            inside &= (others >= low).all(axis=1) & (others <= high).all(axis=1)
            taken = len(points) == 3 and tuple(nodes[arc].tolist()) in straight
            assert inside.any() or taken or (is_ring and len(points) == 4)


@settings(deadline=None, max_examples=100)
@given(points=graphs_of_functions(), tolerance=st.floats(0.1, 40), across=st.floats(0.5, 2), down=st.floats(0.5, 2))
def test_a_lone_arc_is_simplified_as_by_shapely(points, tolerance, across, down):
    simple = simplify(alone(points), tolerance, "dp", (across, down))

    peer = shapely.simplify(shapely.LineString(points * (across, down)), tolerance, preserve_topology=False)
    assert simple.points * (across, down) == pytest.approx(shapely.get_coordinates(peer), abs=1e-9)
    assert simple.offsets.tolist() == [0, len(simple.points)]


@settings(deadline=None, max_examples=100)
@given(points=graphs_of_functions(), tolerance=st.floats(0.1, 20), across=st.floats(0.5, 2), down=st.floats(0.5, 2))
def test_a_lone_arc_loses_its_smallest_triangles(points, tolerance, across, down):
    left = points * (across, down)
    while len(left) > 2:
        areas = np.abs(np.linalg.det(np.stack([left[1:-1] - left[:-2], left[2:] - left[1:-1]], axis=1))) / 2
        if areas.min() > tolerance**2:
            break
        left = np.delete(left, 1 + areas.argmin(), axis=0)

    simple = simplify(alone(points), tolerance, "vw", (across, down))
    assert simple.points * (across, down) == pytest.approx(left, abs=1e-9)


@settings(deadline=None, max_examples=100)
@given(data=st.data(), classes=maps(), smoothed=st.booleans(), tolerance=TOLERANCES, method=METHODS)
def test_simplified_polygons_do_not_depend_on_the_blocks(data, classes, smoothed, tolerance, method):
    in_blocks = boundaries(classes, smoothed, data.draw(layouts(classes.shape)))

    whole = simplify(boundaries(classes, smoothed), tolerance, method)
    assert equal(assemble(simplify(in_blocks, tolerance, method)), assemble(whole))


@settings(deadline=None, max_examples=50)
@given(classes=maps(), seed=st.integers(0, 2**32), smoothed=st.booleans(), tolerance=TOLERANCES, method=METHODS)
def test_the_order_of_arcs_does_not_matter(classes, seed, smoothed, tolerance, method):
    arcs = boundaries(classes, smoothed)
    order = np.random.default_rng(seed).permutation(len(arcs.left))
    shuffled = replace(
        arcs,
        points=np.concatenate([run(arcs, arc) for arc in order]) if len(order) else arcs.points,
        offsets=np.concatenate([[0], np.cumsum(np.diff(arcs.offsets)[order])]),
        **{name: getattr(arcs, name)[order] for name in ("left", "right", "start", "end")},
    )

    simple, other = simplify(arcs, tolerance, method), simplify(shuffled, tolerance, method)
    assert all(np.array_equal(run(simple, arc), run(other, at)) for at, arc in enumerate(order))


@pytest.mark.parametrize("method", ["dp", "vw"])
def test_no_tolerance_keeps_everything(method):
    arcs = boundaries(np.tile(np.array([[1, 2], [3, 1]], np.uint8), (4, 4)), smoothed=True)

    assert simplify(arcs, 0, method) is arcs


@pytest.mark.parametrize("method", ["dp", "vw"])
def test_an_island_in_a_bay_stays_in_its_bay(method):
    classes = np.ones((12, 16), np.uint8)
    classes[2:10, 2:14] = 2
    classes[4:8, 4:14] = 1
    classes[5:7, 7:9] = 3
    faces = assemble(simplify(boundaries(classes), np.inf, method))
    polygons = faces.polygons()

    around, bay, island = (polygons[faces.class_id == class_id][0] for class_id in (1, 2, 3))
    assert len(around.interiors) == 2
    assert shapely.relate_pattern(around, island, "FF*F1****")
    assert shapely.disjoint(bay, island)
    assert len(island.exterior.coords) == 4


def test_real_shapes_keep_their_areas_with_a_fraction_of_the_points():
    rng = np.random.default_rng(5)
    fields = [ndimage.gaussian_filter(rng.standard_normal((300, 300)), sigma) * sigma for sigma in (4, 6, 8, 10)]
    arcs = boundaries((1 + np.argmax(fields, axis=0)).astype(np.uint8))

    for simple in (simplify(arcs, 1.0), simplify(smooth(arcs), 0.6), simplify(smooth(arcs), 1.2, "vw")):
        faces = assemble(simple)
        large = faces.pixels > 500
        assert len(simple.points) < 0.4 * len(arcs.points)
        assert shapely.area(faces.polygons())[large] == pytest.approx(faces.pixels[large], rel=0.05)
