from itertools import pairwise
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio.features
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from geoseg.errors import CoverageError
from geoseg.polygons import Faces, class_areas, encode, face_areas, pixel_areas, polygonize, trace
from geoseg.polygons.arcs import NORTH, SOUTH
from geoseg.polygons.kernel import Kernel
from geoseg.window import Window

NORTH_UP = Affine(0.5, 0, 300, 0, -0.5, 800)
RING_IN_RING = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1],
        [1, 2, 2, 2, 2, 2, 1],
        [1, 2, 1, 1, 1, 2, 1],
        [1, 2, 1, 3, 1, 2, 1],
        [1, 2, 1, 1, 1, 2, 1],
        [1, 2, 2, 2, 2, 2, 1],
        [1, 1, 1, 1, 1, 1, 1],
    ],
    np.uint8,
)
PINCHED = np.array([[1, 1, 1, 1], [1, 2, 1, 2], [1, 1, 2, 1], [2, 1, 1, 1]], np.uint8)


@st.composite
def rasters(draw: st.DrawFn) -> np.ndarray:
    """Class rasters from 1x1 up: noise of few or many classes, with blots of one class, and figures."""
    height, width = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["noise", "many", "blots", "checks", "diagonals", "rings", "empty"]))
    rows, cols = np.mgrid[:height, :width]
    if kind == "many":
        return rng.integers(0, 256, (height, width), dtype=np.uint8)
    if kind == "checks":
        return ((rows + cols) % 2 + draw(st.integers(0, 1))).astype(np.uint8)
    if kind == "diagonals":
        return (1 + ((rows - cols) % draw(st.integers(2, 4)) == 0)).astype(np.uint8)
    if kind == "rings":
        return (1 + np.maximum(abs(rows - height // 2), abs(cols - width // 2)) % 2).astype(np.uint8)
    if kind == "empty":
        return np.zeros((height, width), np.uint8)
    classes = rng.choice([0, 1, 2, 3], (height, width), p=rng.dirichlet([1, 1, 1, 1])).astype(np.uint8)
    if kind == "blots":
        for _ in range(3):
            row, col = rng.integers(height), rng.integers(width)
            classes[row : row + rng.integers(1, 8), col : col + rng.integers(1, 8)] = rng.integers(0, 4)
    return classes


@st.composite
def layouts(draw: st.DrawFn, shape: tuple[int, int]) -> list[Window]:
    """Windows that cover a raster, in any order: bands, blocks, or columns of unequal blocks."""
    window = Window.of(shape)
    height, width = draw(st.integers(1, shape[0])), draw(st.integers(1, shape[1]))
    kind = draw(st.sampled_from(["bands", "blocks", "columns"]))
    if kind == "bands":
        windows = list(window.split(height, shape[1]))
    elif kind == "blocks":
        windows = list(window.split(height, width))
    else:
        columns = window.split(shape[0], width)
        windows = [block for column in columns for block in column.split(draw(st.integers(1, shape[0])), width)]
    return draw(st.permutations(windows))


def cut(classes: np.ndarray, windows: list[Window] | None = None, confidence: np.ndarray | None = None):
    whole = Window.of(classes.shape)
    for window in windows or [whole]:
        part = window.within(whole)
        yield window, classes[part], None if confidence is None else confidence[part]


def outline(classes: np.ndarray, windows: list[Window] | None = None, confidence: np.ndarray | None = None) -> Faces:
    return polygonize(cut(classes, windows, confidence), classes.shape)


def numbered(faces: Faces, shape: tuple[int, int]) -> np.ndarray:
    """Face of each pixel, from 1; 0 outside."""
    shapes = zip(faces.polygons(), range(1, len(faces) + 1), strict=True)
    return rasterio.features.rasterize(shapes, out_shape=shape, dtype="int32") if len(faces) else np.zeros(shape, np.int32)


def equal(one: Faces, other: Faces) -> bool:
    names = Faces.__dataclass_fields__
    return all(np.array_equal(getattr(one, name), getattr(other, name), equal_nan=name == "confidence") for name in names)


@settings(deadline=None, max_examples=150)
@given(classes=rasters())
def test_polygons_give_back_the_raster_and_form_a_valid_coverage(classes):
    faces = outline(classes)
    polygons = faces.polygons(NORTH_UP)

    burnt = np.zeros_like(classes)
    if len(faces):
        shapes = zip(polygons, faces.class_id.tolist(), strict=True)
        burnt = rasterio.features.rasterize(shapes, out_shape=classes.shape, transform=NORTH_UP, dtype="uint8")
    assert (burnt == classes).all()
    assert shapely.is_valid(polygons).all()
    assert shapely.coverage_is_valid(polygons)
    assert (shapely.is_ccw(shapely.get_exterior_ring(polygons))).all()
    assert (shapely.area(polygons) == faces.pixels * 0.25).all()
    assert np.array_equal(np.bincount(faces.class_id, faces.pixels, 256)[1:], np.bincount(classes.ravel(), minlength=256)[1:])


@settings(deadline=None, max_examples=150)
@given(classes=rasters())
def test_faces_are_those_of_rasterio(classes):
    faces = outline(classes)

    shapes = rasterio.features.shapes(classes, mask=classes > 0, connectivity=4)
    peers = [(value, shapely.geometry.shape(shape)) for shape, value in shapes]

    ours = zip(faces.class_id.tolist(), faces.polygons(), strict=True)
    assert sorted((c, shapely.normalize(shapely.simplify(p, 0)).wkt) for c, p in ours) == sorted(
        (int(c), shapely.normalize(shapely.simplify(p, 0)).wkt) for c, p in peers
    )


@settings(deadline=None, max_examples=150)
@given(data=st.data(), classes=rasters(), with_confidence=st.booleans())
def test_faces_do_not_depend_on_the_blocks(data, classes, with_confidence):
    confidence = (np.arange(classes.size).reshape(classes.shape) * 37 % 256).astype(np.uint8) if with_confidence else None

    assert equal(outline(classes, data.draw(layouts(classes.shape)), confidence), outline(classes, None, confidence))


@settings(deadline=None, max_examples=100)
@given(classes=rasters(), seed=st.integers(0, 2**32))
def test_faces_are_counted_and_ordered_as_pixel_by_pixel(classes, seed):
    confidence = np.random.default_rng(seed).choice([0, 60, 254, 255], classes.shape).astype(np.uint8)
    faces = outline(classes, None, confidence)
    face_of = numbered(faces, classes.shape)

    firsts = []
    for face in range(len(faces)):
        mine = face_of == face + 1
        rows, cols = np.nonzero(mine)
        firsts.append((rows[0], cols[0]))
        known = confidence[mine & (confidence < 255)]
        assert faces.pixels[face] == mine.sum()
        assert faces.class_id[face] == classes[rows[0], cols[0]]
        assert faces.centroid[face] == pytest.approx([cols.mean() + 0.5, rows.mean() + 0.5])
        assert faces.confidence[face] == pytest.approx(known.mean() / 254 if known.size else np.nan, nan_ok=True)
    assert firsts == sorted(firsts)


@settings(deadline=None, max_examples=100)
@given(data=st.data(), classes=rasters())
def test_arcs_are_the_edges_between_classes_once_each(data, classes):
    arcs = trace(cut(classes, data.draw(layouts(classes.shape))), classes.shape)
    around = np.pad(classes, 1)
    upright, level = np.zeros((2, *around.shape), int)  # edges on the left side, and on the upper side, of each pixel
    ids = np.append(arcs.class_id, 0)

    for arc in range(len(arcs.left)):
        points = arcs.points[arcs.offsets[arc] : arcs.offsets[arc + 1]]
        for (col, row), (to_col, to_row) in pairwise(points + 1):
            rows, cols = slice(min(row, to_row), max(row, to_row)), slice(min(col, to_col), max(col, to_col))
            if row == to_row:
                level[row, cols] += 1
                above, below = around[row - 1, cols], around[row, cols]
                sides = (above, below) if to_col > col else (below, above)
            else:
                upright[rows, col] += 1
                before, after = around[rows, col - 1], around[rows, col]
                sides = (after, before) if to_row > row else (before, after)
            assert (sides[0] == ids[arcs.left[arc]]).all()
            assert (sides[1] == ids[arcs.right[arc]]).all()
    assert (level[1:] == (around[1:] != around[:-1])).all()
    assert (upright[:, 1:] == (around[:, 1:] != around[:, :-1])).all()


def test_arcs_end_where_three_classes_meet():
    arcs = trace(cut(np.array([[1, 1], [2, 3]], np.uint8)), (2, 2))

    inner = arcs.offsets[:-1][(arcs.points[arcs.offsets[:-1]] == (1, 1)).all(axis=1)]
    outer = arcs.offsets[1:][(arcs.points[arcs.offsets[1:] - 1] == (1, 1)).all(axis=1)]
    assert len(inner) + len(outer) == 3
    assert {int(code) & 3 for code in np.concatenate([arcs.start, arcs.end]) if code >= 0} >= {NORTH, SOUTH}


def test_rings_in_rings_keep_their_holes():
    faces = outline(RING_IN_RING)

    assert faces.class_id.tolist() == [1, 2, 1, 3]
    assert np.diff(faces.face_offsets).tolist() == [2, 2, 2, 1]


def test_a_ring_that_would_touch_itself_becomes_a_shell_and_a_hole():
    faces = outline(PINCHED)

    assert faces.pixels.tolist() == [12, 1, 1, 1, 1]
    assert np.diff(faces.face_offsets).tolist() == [3, 1, 1, 1, 1]
    assert shapely.is_valid(faces.polygons()).all()


def test_a_straight_side_has_corners_only_where_a_neighbour_has_one():
    alone = outline(np.full((3, 5), 7, np.uint8), list(Window(0, 0, 3, 5).split(1, 5)))
    beside = outline(np.array([[1, 1], [2, 3]], np.uint8))

    assert alone.vertices.tolist() == [[0, 0], [0, 3], [5, 3], [5, 0], [0, 0]]
    assert beside.vertices[:6].tolist() == [[0, 0], [0, 1], [1, 1], [2, 1], [2, 0], [0, 0]]


def test_read_only_and_strided_blocks_are_fine():
    classes = np.arange(1, 49, dtype=np.uint8).reshape(6, 8)
    classes.flags.writeable = False

    assert len(outline(classes[::2, ::2])) == 12


@pytest.mark.parametrize(
    "windows",
    [
        [],
        [Window(0, 0, 1, 4)],
        [Window(0, 0, 2, 2)],
        [Window(0, 0, 3, 4)],
        [Window(0, 0, 1, 4)] * 2,
        [Window(0, 0, 2, 4), Window(0, 0, 1, 4)],
    ],
)
def test_blocks_that_do_not_cover_the_raster_are_refused(windows):
    blocks = ((window, np.ones(window.shape, np.uint8), None) for window in windows)

    with pytest.raises(CoverageError, match="2x4 pixels"):
        polygonize(blocks, (2, 4))


@pytest.mark.parametrize("transform", [NORTH_UP, Affine(2, 0, 0, 0, 2, 0), Affine(1, 1, 5, 1, -1, 9), Affine(0, 1, 0, 1, 0, 0)])
def test_well_known_binary_is_what_shapely_makes(transform):
    faces = outline(PINCHED)
    chosen = np.array([3, 0])
    data, offsets = encode(faces, chosen, transform)

    geometries = shapely.from_wkb([data[begin:end].tobytes() for begin, end in pairwise(offsets)])

    assert (shapely.get_type_id(geometries) == shapely.GeometryType.MULTIPOLYGON).all()
    parts = shapely.get_parts(geometries)
    assert shapely.equals(parts, faces.polygons(transform)[chosen]).all()
    assert shapely.is_ccw(shapely.get_exterior_ring(parts)).all()


def test_a_kernel_runs_where_nothing_can_be_cached(tmp_path: Path, monkeypatch):
    def doubled(value: int) -> int:
        return 2 * value

    (tmp_path / "file").touch()
    monkeypatch.setattr("numba.config.CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    assert Kernel(doubled)(4) == 8


def test_a_kernel_is_kept_in_the_users_cache_folder(tmp_path: Path, monkeypatch):
    def tripled(value: int) -> int:
        return 3 * value

    monkeypatch.setattr("numba.config.CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert Kernel(tripled)(4) == 12
    assert list((tmp_path / "geoseg").rglob("*tripled*.nbc"))


SCENES = {
    "EPSG:32645": Affine(10, 0, 700_000, 0, -10, 8_000_000),
    "EPSG:3857": Affine(0.3, 0, 9e6, 0, -0.3, 6e6),
    "EPSG:4326": Affine(1e-5, 0, 11, 0, -1e-5, 50),
    "EPSG:2263": Affine(0.5, 0, 1e6, 0, -0.5, 2e5),
    "EPSG:27561": Affine(1, 0, 6e5, 0, -1, 2e5),
    "EPSG:4901": Affine(1e-5, 0, 1, 0, -1e-5, 54),
    "EPSG:3031": Affine(10, 3, 0, 2, -10, 0),
}


@pytest.mark.parametrize("crs", SCENES)
def test_pixel_areas_are_geodesic(crs):
    grid = GeoBox((600, 800), SCENES[crs], crs)
    size = 50
    for col, row in [(400, 300), (60, 560)]:
        ring = size / 2 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
        steps = np.linspace(0, 1, 200)[:, None]
        path = np.array([col, row]) + np.concatenate([a + steps * (b - a) for a, b in pairwise(ring)])
        system = grid.crs.proj
        to_geodetic = pyproj.Transformer.from_crs(system, system.geodetic_crs, always_xy=True)
        a, b, c, d, e, f, *_ = grid.affine
        angles = to_geodetic.transform(a * path[:, 0] + b * path[:, 1] + c, d * path[:, 0] + e * path[:, 1] + f)
        unit = np.degrees(system.geodetic_crs.axis_info[0].unit_conversion_factor)
        area, _ = system.get_geod().polygon_area_perimeter(*(np.array(angle) * unit for angle in angles))

        assert pixel_areas(grid, np.array([[col, row]], float))[0] == pytest.approx(abs(area) / size**2, rel=2e-6)


def test_the_pixels_of_the_globe_add_up_to_the_globe():
    grid = GeoBox((180, 360), Affine(1, 0, -180, 0, -1, 90), "EPSG:4326")
    rows, cols = np.mgrid[:180, :360] + 0.5

    assert pixel_areas(grid, np.column_stack([cols.ravel(), rows.ravel()])).sum() == pytest.approx(510.0656e12, rel=5e-4)


def test_areas_without_an_ellipsoid_are_planar():
    feet = GeoBox((3, 3), Affine(2, 0, 0, 0, -2, 0), 'LOCAL_CS["site",UNIT["foot",0.3048]]')
    plain = GeoBox((3, 3), Affine(2, 0, 0, 0, -2, 0), None)

    assert pixel_areas(plain, np.zeros((1, 2))) == [4]
    assert pixel_areas(feet, np.zeros((1, 2))) == pytest.approx([4 * 0.3048**2])


def test_areas_outside_of_the_domain_are_not_a_number():
    grid = GeoBox((3, 3), Affine(0.01, 0, 1e9, 0, -0.01, 1e9), "EPSG:32645")

    assert np.isnan(pixel_areas(grid, np.ones((1, 2)))).all()
    assert np.isnan(class_areas(grid, np.full(256, 2))[1])


@settings(deadline=None, max_examples=30)
@given(classes=rasters(), crs=st.sampled_from(["EPSG:32645", "EPSG:3857", None]))
def test_face_areas_add_up(classes, crs):
    grid = GeoBox(classes.shape, Affine(0.2, 0, 500_000, 0, -0.2, 3_000_000), crs)
    faces = outline(classes)
    areas = face_areas(faces, grid)

    of_classes = class_areas(grid, np.bincount(classes.ravel(), minlength=256))

    assert areas == pytest.approx(faces.pixels * 0.04, rel=2e-3 if crs != "EPSG:3857" else 1)
    for class_id in range(1, 256):
        assert areas[faces.class_id == class_id].sum() == pytest.approx(of_classes[class_id], rel=1e-6)
