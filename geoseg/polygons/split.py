"""Split touching instances, such as cars in a row, at their necks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from geoseg.polygons.arcs import Arcs, Block
from geoseg.polygons.kernel import Kernel, inlined
from geoseg.window import Window

Read: TypeAlias = Callable[[Window], tuple[NDArray[np.uint8], NDArray[np.uint8] | None]]
"""Classes (H, W) of a window of a class raster, and its confidence (H, W) as in `Block`, or None."""

NECK = 0.7

_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
_LARGEST = 1 << 24  # pixels; a face in a larger window is left alone: looking at it would take about a gigabyte
_TOGETHER = 1024  # faces no larger than this square that begin in the same one are read together
_NARROWEST = 3  # pixels; what is narrower has no instances beside a neck
_COLOURS = 8  # most codes of a class; maps need four, and the greedy colouring rarely more


@dataclass(frozen=True, eq=False)
class Patches:
    """Which pixels of a class raster get which code, so that touching instances of a class become faces of their own.

    Instances of one face that share an edge differ in their codes; the first of them keeps the class.

    Attributes:
        windows: (N, 4) int64, row, column, end row and end column of each face that is split.
        codes: of each of them, (H, W) uint8; 0 where the raster stays as it is.
        class_of: (256,) uint8, the class of each code: ``class_of[arcs.class_id]`` after tracing the patched raster.
        instances: number of instances of the split faces.
        left_alone: number of faces that were too large to be looked at, or had no codes to spare.
    """

    windows: NDArray[np.int64]
    codes: list[NDArray[np.uint8]]
    class_of: NDArray[np.uint8]
    instances: int
    left_alone: int


def face_windows(arcs: Arcs) -> NDArray[np.int64]:
    """The bounds of each face: (F, 4) row, column, end row and end column in pixels."""
    faces = len(arcs.class_id)
    first, last = np.full((2, faces), np.iinfo(np.int64).max), np.zeros((2, faces), np.int64)
    low = np.minimum.reduceat(arcs.points, arcs.offsets[:-1]).astype(np.int64)
    high = np.maximum.reduceat(arcs.points, arcs.offsets[:-1]).astype(np.int64)
    for side in (arcs.left, arcs.right):
        inside = side >= 0
        for axis, column in enumerate((1, 0)):  # one-dimensional, for which numpy is fast
            np.minimum.at(first[axis], side[inside], low[inside, column])
            np.maximum.at(last[axis], side[inside], high[inside, column])
    return np.concatenate([first, last]).T


def split(read: Read, windows: NDArray[np.int64], class_id: NDArray[np.uint8], chosen: Sequence[int], *, neck: float = NECK) -> Patches:
    """Find the faces that are several instances which touch, and where each instance lies.

    The watershed of the distance to the border (Beucher & Lantuéjoul 1979), with a rule for its markers that does not
    depend on scale: two tops of the distance are two instances if on the best way from one to the other the face gets
    narrower than ``neck`` times its width at the lower top. So neither a disc nor a bar is split, nor a house whose wings
    are equally wide (the widest place of an L is 1.17 times as wide as its wings, of a T 1.25, of a cross 1.41), nor one
    with a narrow annexe; two discs are, and cars whose bumpers touch, if they touch along less than ``neck`` of their width.
    With a confidence the distance is multiplied by it: a seam of doubt inside a row of houses is a neck, too.

    A face is judged by its own pixels alone. Faces are read in groups that depend on their bounds, never on blocks.

    Args:
        read: gives the pixels of any window of the raster.
        windows: (F, 4) int64, bounds of all 4-connected faces of the raster; see `face_windows`.
        class_id: (F,) uint8, class of each face.
        chosen: ids of the classes to split.
        neck: from 0 (never) to 1.
    """
    used = {*np.unique(class_id).tolist(), *chosen}
    spare = [code for code in range(255, 0, -1) if code not in used]
    share = min(_COLOURS - 1, len(spare) // max(1, len(chosen)))
    codes = {wanted: np.array([0, *spare[at * share : (at + 1) * share]], np.uint8) for at, wanted in enumerate(chosen)}
    class_of = np.arange(256, dtype=np.uint8)
    for wanted, mine in codes.items():
        class_of[mine[1:]] = wanted

    sizes = windows[:, 2:] - windows[:, :2]
    faces = np.flatnonzero(np.isin(class_id, list(chosen)) & (sizes.min(axis=1, initial=_LARGEST) >= _NARROWEST))
    too_large = sizes[faces].prod(axis=1) > _LARGEST
    places, pieces, instances, left_alone = list[Window](), list[NDArray[np.uint8]](), 0, int(too_large.sum())
    for group in _groups(windows, faces[~too_large]):
        for wanted, place, parts in _split_group(read, windows[group], class_id[group], neck):
            colours = _coloured(parts)
            if colours.max() > len(codes[wanted]):
                left_alone += 1
                continue
            places.append(place)
            pieces.append(np.append(np.uint8(0), codes[wanted])[colours])
            instances += int(parts.max())
    bounds = np.array([(place.row, place.col, place.end_row, place.end_col) for place in places], np.int64).reshape(-1, 4)
    return Patches(bounds, pieces, class_of, instances, left_alone)


def patched(blocks: Iterable[Block], patches: Patches) -> Iterator[Block]:
    """The blocks of a class raster, in any layout, with the codes of instances in place of their class."""
    row, col, end_row, end_col = patches.windows.T
    for window, classes, confidence in blocks:
        touched = np.flatnonzero((row < window.end_row) & (end_row > window.row) & (col < window.end_col) & (end_col > window.col))
        changed = classes.copy() if len(touched) else classes
        for patch in touched:
            place = Window.between(*patches.windows[patch].tolist())
            common = place & window
            if common is not None:
                codes = patches.codes[patch][common.within(place)]
                np.copyto(changed[common.within(window)], codes, where=codes > 0)
        yield window, changed, confidence


def _groups(windows: NDArray[np.int64], faces: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Faces that are read together: small ones that begin in the same square, and each large one alone."""
    bounds = windows[faces]
    small = (bounds[:, 2:] - bounds[:, :2] <= _TOGETHER).all(axis=1)
    square = (bounds[:, 0] // _TOGETHER << 32) + bounds[:, 1] // _TOGETHER
    group = np.where(small, square, -1 - np.arange(len(faces)))
    order = np.argsort(group, kind="stable")
    ends = np.flatnonzero(np.diff(group[order])) + 1
    return (part for part in np.split(faces[order], ends) if len(part))


def _split_group(
    read: Read, windows: NDArray[np.int64], class_id: NDArray[np.uint8], neck: float
) -> Iterator[tuple[int, Window, NDArray[np.int32]]]:
    """The class, the window and the numbered instances (H, W) of each face of a group that has several."""
    around = Window.between(*windows[:, :2].min(axis=0).tolist(), *windows[:, 2:].max(axis=0).tolist())
    classes, confidence = read(around)
    for wanted in np.unique(class_id).tolist():
        bounds = set(map(tuple, windows[class_id == wanted].tolist()))
        labels, _ = ndimage.label(classes == wanted, _CROSS)
        for label, part in enumerate(ndimage.find_objects(labels), 1):
            place = Window.between(part[0].start, part[1].start, part[0].stop, part[1].stop).shift(around.row, around.col)
            # No two 4-connected sets that share no pixel can both reach all four sides of a rectangle: this is the face.
            if (place.row, place.col, place.end_row, place.end_col) in bounds:
                parts = _instances(labels[part] == label, None if confidence is None else confidence[part], neck)
                if parts is not None:
                    yield wanted, place, parts


def _instances(face: NDArray[np.bool_], confidence: NDArray[np.uint8] | None, neck: float) -> NDArray[np.int32] | None:
    """Number the instances of a face (H, W) from 1, 0 outside of it; None if it is a single one."""
    inside = np.pad(face, 1)
    # From the middle of a pixel to the middle of the nearest one outside: half the width, or half a pixel more where the
    # width is odd. Each side of the comparison takes the end of this range that speaks against a neck.
    most = ndimage.distance_transform_edt(inside)
    least = neck * np.maximum(most - 0.5, 0)
    if confidence is not None:
        weight = _smooth_confidence(np.pad(confidence, 1), inside)
        most, least = most * weight, least * weight
    pixels = np.flatnonzero(inside)
    tops = _tops(pixels[np.argsort(-most.ravel()[pixels], kind="stable")], most.ravel(), least.ravel(), inside.shape[1])
    if len(tops) < 2:
        return None
    markers = np.zeros(inside.shape, np.int32)
    markers.ravel()[tops] = np.arange(1, len(tops) + 1)
    parts: NDArray[np.int32] = watershed(-most, markers, connectivity=1, mask=inside)[1:-1, 1:-1]
    return parts


@inlined
def _root(parents: NDArray[np.int64], pixel: int) -> int:
    while parents[pixel] != pixel:
        parents[pixel] = parents[parents[pixel]]
        pixel = parents[pixel]
    return pixel


@Kernel
def _tops(pixels: NDArray[np.int64], most: NDArray[np.float64], least: NDArray[np.float64], width: int) -> NDArray[np.int64]:
    """The highest pixel of each instance of a face, in row-major order.

    Pixels are added from the highest to the lowest. Where two hills meet they become one, unless this is lower than the
    lower of their tops by more than the difference of ``most`` and ``least`` there. (With a constant difference these
    would be the h-maxima of Vincent 1993.)

    Args:
        pixels: (N,) of the face, from the highest to the lowest, as indices into the rest; none on the border.
        most: (H * W,) height where hills meet.
        least: (H * W,) height of tops, never more than ``most``.
        width: pixels of a row.
    """
    parents = np.full(len(most), -1, np.int64)
    for pixel in pixels:
        parents[pixel] = pixel
        for step in (-width, -1, 1, width):
            if parents[pixel + step] >= 0:
                one, other = _root(parents, pixel), _root(parents, pixel + step)
                high, low = (one, other) if (least[one], -one) > (least[other], -other) else (other, one)
                if most[pixel] >= least[low]:
                    parents[low] = high
    return np.sort(pixels[parents[pixels] == pixels])


def _smooth_confidence(confidence: NDArray[np.uint8], inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean confidence, 0 to 1, of the pixels of a face in 5 x 5 around each; 1 where it is not known."""
    known = np.where(inside, np.minimum(confidence, 254) / 254, 0)
    count = ndimage.uniform_filter(inside.astype(np.float64), 5, mode="constant")
    weight: NDArray[np.float64] = ndimage.uniform_filter(known, 5, mode="constant") / np.maximum(count, 1 / 26)
    return weight


def _coloured(parts: NDArray[np.int32]) -> NDArray[np.int64]:
    """Colours (H, W) of numbered instances, from 1, and 0 outside: two that share an edge differ; the first gets 1."""
    pairs = []
    for one, other in ((parts[1:], parts[:-1]), (parts[:, 1:], parts[:, :-1])):
        meet = (one != other) & (one > 0) & (other > 0)
        pairs.append(np.stack([np.maximum(one[meet], other[meet]), np.minimum(one[meet], other[meet])], axis=1))
    edges = np.unique(np.concatenate(pairs), axis=0)
    colours = np.zeros(int(parts.max()) + 1, np.int64)
    for part in range(1, len(colours)):
        taken = set(colours[edges[edges[:, 0] == part, 1]].tolist())
        colours[part] = next(colour for colour in range(1, len(colours)) if colour not in taken)
    return colours[parts]
