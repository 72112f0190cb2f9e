from dataclasses import replace

import numpy as np
import pytest
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.morphology import local_maxima, reconstruction

from geoseg.polygons import Arcs, assemble, trace
from geoseg.polygons.split import Patches, _tops, face_windows, patched, split
from geoseg.window import Window

CAR, ROAD = 4, 2


def cut(classes: np.ndarray, size: tuple[int, int] | None = None, confidence: np.ndarray | None = None):
    whole = Window.of(classes.shape)
    for window in whole.split(*(size or classes.shape)):
        part = window.within(whole)
        yield window, classes[part], None if confidence is None else confidence[part]


def patches_of(
    classes: np.ndarray, chosen: tuple[int, ...] = (CAR,), confidence: np.ndarray | None = None, **options: float
) -> tuple[Arcs, Patches]:
    arcs = trace(cut(classes), classes.shape)
    whole = Window.of(classes.shape)

    def read(window: Window) -> tuple[np.ndarray, np.ndarray | None]:
        part = window.within(whole)
        return classes[part], None if confidence is None else confidence[part]

    return arcs, split(read, face_windows(arcs), arcs.class_id, chosen, **options)


def codes_of(classes: np.ndarray, patches: Patches, size: tuple[int, int] | None = None) -> np.ndarray:
    codes = np.zeros_like(classes)
    for window, values, _ in patched(cut(classes, size), patches):
        codes[window.within(Window.of(classes.shape))] = values
    return codes


def pieces(classes: np.ndarray, **options) -> int:
    """Number of faces of class CAR after splitting."""
    _, patches = patches_of(classes, **options)
    arcs = trace(patched(cut(classes), patches), classes.shape)
    return int((patches.class_of[arcs.class_id] == CAR).sum())


def drawn(*shapes: shapely.Geometry, margin: int = 3) -> np.ndarray:
    """A raster of road with shapes of class CAR burnt into it."""
    union = shapely.union_all(shapes)
    left, top, right, bottom = shapely.bounds(union)
    moved = shapely.transform(union, lambda points: points - (left - margin, top - margin))
    shape = (int(bottom - top) + 2 * margin + 1, int(right - left) + 2 * margin + 1)
    return rasterio.features.rasterize([(moved, CAR)], out_shape=shape, fill=ROAD, dtype="uint8")


def turned(shape: shapely.Geometry, degrees: float) -> shapely.Geometry:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return shapely.transform(shape, lambda points: points @ np.array([[cos, sin], [-sin, cos]]))


@st.composite
def rasters(draw: st.DrawFn) -> np.ndarray:
    """Smooth blots of a few classes, with necks between them; or noise."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    fields = ndimage.gaussian_filter(rng.standard_normal((draw(st.integers(1, 4)), *shape)), (0, *[draw(st.floats(0, 4))] * 2))
    classes = (2 * fields.argmax(axis=0) + 2).astype(np.uint8)
    for _ in range(draw(st.integers(0, 12))):  # rows of discs that touch
        radius, row, col = rng.integers(2, 9), rng.integers(shape[0]), rng.integers(shape[1])
        rows, cols = np.ogrid[: shape[0], : shape[1]]
        for step in range(4):
            classes[(rows - row) ** 2 + (cols - col - step * rng.integers(radius, 2 * radius + 1)) ** 2 <= radius**2] = CAR
    classes[rng.random(shape) < draw(st.sampled_from([0, 0.01]))] = 0
    return classes


@settings(deadline=None, max_examples=60)
@given(classes=rasters(), data=st.data(), with_confidence=st.booleans())
def test_each_instance_is_a_face_and_those_of_a_face_add_up_to_it(classes, data, with_confidence):
    confidence = np.random.default_rng(classes.size).integers(0, 256, classes.shape, np.uint8) if with_confidence else None
    arcs, patches = patches_of(classes, (CAR, 2), confidence)
    codes = codes_of(classes, patches)
    parts = trace(cut(codes), classes.shape)

    assert (patches.class_of[codes] == classes).all()
    assert len(parts.class_id) == len(arcs.class_id) - len(patches.windows) + patches.instances
    changed = np.zeros(classes.shape, bool)
    for bounds, piece in zip(patches.windows.tolist(), patches.codes, strict=True):
        part = Window.between(*bounds).within(Window.of(classes.shape))
        changed[part] |= piece > 0
    assert (codes[~changed] == classes[~changed]).all()
    assert patches.left_alone == 0

    size = data.draw(st.integers(1, classes.shape[0])), data.draw(st.integers(1, classes.shape[1]))
    assert (codes_of(classes, patches, size) == codes).all()


@settings(deadline=None, max_examples=30)
@given(classes=rasters(), shift=st.tuples(st.integers(0, 1500), st.integers(0, 1500)))
def test_a_face_is_split_alike_wherever_it_lies(classes, shift):
    alone = codes_of(classes, patches_of(classes)[1])
    moved = np.pad(classes, ((shift[0], 5), (shift[1], 5)))

    assert (codes_of(moved, patches_of(moved)[1])[shift[0] : -5, shift[1] : -5] == alone).all()


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32), height=st.integers(1, 20), width=st.integers(1, 20), levels=st.integers(1, 9), step=st.floats(0.1, 1))
def test_tops_are_the_maxima_that_morphological_reconstruction_leaves(seed, height, width, levels, step):
    rng = np.random.default_rng(seed)
    most = np.pad(rng.integers(0, levels + 1, (height, width)), 1).astype(float)
    least = most * step
    pixels = np.flatnonzero(most)
    tops = _tops(pixels[np.argsort(-most.ravel()[pixels], kind="stable")], most.ravel(), least.ravel(), most.shape[1])

    maxima, count = ndimage.label(
        local_maxima(reconstruction(least, most, footprint=ndimage.generate_binary_structure(2, 1)), connectivity=1)
    )
    marked = set(maxima.ravel()[tops].tolist())
    assert len(tops) == len(marked - {0}) == (count if len(pixels) else 0)


@settings(deadline=None, max_examples=60)
@given(classes=rasters())
def test_bounds_are_those_of_the_faces(classes):
    arcs = trace(cut(classes), classes.shape)
    bounds = shapely.bounds(assemble(arcs).polygons()).reshape(-1, 4)

    assert (face_windows(arcs) == bounds[:, [1, 0, 3, 2]]).all()


@settings(deadline=None, max_examples=150)
@given(width=st.floats(6, 40), length=st.floats(1, 8), degrees=st.floats(0, 90), data=st.data())
def test_a_bar_or_a_house_of_equal_wings_is_not_split(width, length, degrees, data):
    bar = shapely.box(0, 0, width, width * length)
    wings = data.draw(st.lists(st.integers(0, 1), max_size=2))
    others = [shapely.box(0, at * (length - 1) * width, width * length, (at * (length - 1) + 1) * width) for at in wings]

    assert pieces(drawn(turned(shapely.union_all([bar, *others]), degrees))) == 1


@settings(deadline=None, max_examples=100)
@given(radius=st.floats(12, 40), apart=st.floats(1.75, 1.95), degrees=st.floats(0, 360), count=st.integers(1, 5))
def test_discs_that_overlap_slightly_are_split(radius, apart, degrees, count):
    discs = [shapely.Point(step * apart * radius, 0).buffer(radius, 64) for step in range(count)]

    assert pieces(drawn(turned(shapely.union_all(discs), degrees))) == count


@settings(deadline=None, max_examples=100)
@given(width=st.integers(8, 30), bumper=st.floats(0.2, 0.5), degrees=st.floats(0, 360), count=st.integers(1, 6))
def test_cars_in_a_row_are_split_where_they_touch(width, bumper, degrees, count):
    length = 2.2 * width
    cars = [shapely.box(0, step * (length + 2), width, step * (length + 2) + length) for step in range(count)]
    middle = shapely.box(width * (1 - bumper) / 2, 0, width * (1 + bumper) / 2, count * (length + 2) - 2)

    assert pieces(drawn(turned(shapely.union_all([*cars, middle]), degrees))) == count


def test_the_seam_lies_at_the_neck():
    classes = np.full((13, 25), ROAD, np.uint8)
    classes[1:12, 1:12] = classes[1:12, 13:24] = classes[5:8, 12] = CAR
    codes = codes_of(classes, patches_of(classes)[1])

    assert len(np.unique(codes[1:12, 1:12])) == len(np.unique(codes[1:12, 13:24])) == 1
    assert codes[6, 6] != codes[6, 18]


def test_confidence_shows_seams_that_the_outline_does_not():
    classes = np.full((24, 64), CAR, np.uint8)
    confidence = np.full(classes.shape, 240, np.uint8)
    confidence[:, 30:34] = 70

    assert pieces(classes) == 1
    _, patches = patches_of(classes, confidence=confidence)
    assert patches.instances == 2
    assert len(patches.windows) == 1
    assert pieces(classes, neck=0.0) == 1


def test_three_instances_that_meet_get_three_codes():
    discs = [shapely.Point(17 * np.cos(angle), 17 * np.sin(angle)).buffer(16) for angle in np.radians([0, 120, 240])]
    classes = drawn(shapely.union_all(discs))
    _, patches = patches_of(classes, neck=0.95)

    assert patches.instances == 3
    assert len(np.unique(codes_of(classes, patches))) == 4


@pytest.mark.parametrize("ids", [255, 254])
def test_without_codes_to_spare_a_face_is_left_alone(ids):
    classes = np.full((20, 256), ROAD, np.uint8)
    classes[0, :ids] = np.arange(1, ids + 1)
    classes[2:11, 2:11] = classes[2:11, 12:21] = classes[6, 11] = CAR
    _, patches = patches_of(classes)

    assert patches.left_alone == (ids == 255)
    assert patches.instances == (2 if ids == 254 else 0)
    assert (patches.class_of[codes_of(classes, patches)] == classes).all()


def test_no_faces_and_no_classes_are_fine():
    empty = np.zeros((5, 7), np.uint8)
    arcs, patches = patches_of(empty)
    assert face_windows(arcs).shape == (0, 4)
    assert (codes_of(empty, patches) == 0).all()

    full = np.full((5, 7), CAR, np.uint8)
    assert patches_of(full, ())[1].instances == 0


def test_a_face_too_large_is_left_alone_unread():
    arcs, _ = patches_of(np.full((4, 4), CAR, np.uint8))
    huge = replace(arcs, points=arcs.points * 4000)

    def read(window: Window) -> tuple[np.ndarray, None]:
        raise AssertionError

    patches = split(read, face_windows(huge), huge.class_id, (CAR,))
    assert patches.left_alone == 1
