import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg.polygons import assemble, trace
from geoseg.polygons.arcs import Arcs
from geoseg.polygons.join import join
from geoseg.polygons.smooth import REACH_PX, smooth
from tests.test_polygons import cut, equal, layouts, rasters


def boundaries(classes: np.ndarray, windows=None) -> Arcs:
    return join(trace(cut(classes, windows), classes.shape))


def relaxed(classes: np.ndarray, rounds: int) -> dict[tuple[int, int], np.ndarray]:
    """Place of each pixel corner on a boundary, moved corner by corner."""
    around = np.pad(classes, 1)
    beside: dict[tuple[int, int], set[tuple[int, int]]] = {}
    fixed = set()
    for row, col in np.ndindex(around.shape):
        for before, ends in (
            (around[row, col - 1] if col else 0, ((col - 1, row - 1), (col - 1, row))),
            (around[row - 1, col] if row else 0, ((col - 1, row - 1), (col, row - 1))),
        ):
            if before != around[row, col]:
                one, other = ends
                beside.setdefault(one, set()).add(other)
                beside.setdefault(other, set()).add(one)
                fixed |= {one, other} if 0 in (before, around[row, col]) else set()
    places = {corner: np.array(corner, float) for corner in beside}
    for _ in range(rounds):
        means = {corner: np.mean([places[near] for near in sorted(beside[corner])], axis=0) for corner in beside}
        for corner in beside.keys() - fixed:
            half = (places[corner] + means[corner]) / 2
            places[corner] = np.clip(half, np.array(corner) - REACH_PX, np.array(corner) + REACH_PX)
    return places


@settings(deadline=None, max_examples=100)
@given(classes=rasters(), rounds=st.integers(0, 30))
def test_vertices_go_where_moving_corner_by_corner_takes_them(classes, rounds):
    arcs = boundaries(classes)
    smoothed, places = smooth(arcs, rounds), relaxed(classes, rounds)

    for arc in range(len(arcs.left)):
        points = smoothed.points[smoothed.offsets[arc] : smoothed.offsets[arc + 1]]
        corners = np.floor(points + 0.5)
        expected = np.array([places[col, row] for col, row in corners.astype(int).tolist()])
        path = shapely.LineString(arcs.points[arcs.offsets[arc] : arcs.offsets[arc + 1]])
        assert np.abs(points - expected).max() < 1e-9
        assert np.abs(points - corners).max() <= REACH_PX + 1e-12
        assert shapely.intersects(path, shapely.points(corners)).all()
        along = [path.project(shapely.Point(corner)) for corner in corners[1:-1]]
        assert along == sorted(along)


@settings(deadline=None, max_examples=150)
@given(classes=rasters(), rounds=st.integers(0, 40))
def test_smoothed_polygons_form_a_valid_coverage(classes, rounds):
    arcs = boundaries(classes)
    smoothed = smooth(arcs, rounds)
    polygons = assemble(smoothed).polygons()

    assert shapely.is_valid(polygons).all()
    assert shapely.coverage_is_valid(polygons)
    assert (shapely.area(polygons) > 0).all()
    assert len(polygons) == len(arcs.class_id)
    assert abs(shapely.area(polygons).sum() - np.count_nonzero(classes)) < 1e-6
    for arc in np.flatnonzero((arcs.left < 0) | (arcs.right < 0)):
        kept = smoothed.points[smoothed.offsets[arc] : smoothed.offsets[arc + 1]]
        assert np.array_equal(kept, arcs.points[arcs.offsets[arc] : arcs.offsets[arc + 1]])


@settings(deadline=None, max_examples=50)
@given(data=st.data(), classes=rasters())
def test_smoothing_does_not_depend_on_the_blocks(data, classes):
    windows = data.draw(layouts(classes.shape))

    assert equal(assemble(smooth(boundaries(classes, windows))), assemble(smooth(boundaries(classes))))


def test_no_rounds_leave_the_pixel_edges():
    classes = np.array([[1, 1, 1, 1], [1, 2, 2, 3], [1, 2, 3, 3], [0, 1, 1, 1]], np.uint8)
    arcs = boundaries(classes)

    assert shapely.equals(assemble(smooth(arcs, 0)).polygons(), assemble(arcs).polygons()).all()


def test_a_staircase_becomes_a_straight_line():
    rows, cols = np.mgrid[:60, :60]
    for slope in (1, 2, 3):
        arcs = boundaries((1 + (slope * (rows - 30) > cols - 30)).astype(np.uint8))
        smoothed = smooth(arcs)

        (arc,) = np.flatnonzero((arcs.left >= 0) & (arcs.right >= 0))
        widths = []
        for points, offsets in ((arcs.points, arcs.offsets), (smoothed.points, smoothed.offsets)):
            path = shapely.segmentize(shapely.LineString(points[offsets[arc] : offsets[arc + 1]]), 0.1)
            inner = shapely.get_coordinates(shapely.clip_by_rect(path, 15, 15, 45, 45))
            widths.append(np.ptp(inner @ (1, -slope)) / np.hypot(1, slope))
        assert widths[1] < 0.1 < 0.7 < widths[0]
