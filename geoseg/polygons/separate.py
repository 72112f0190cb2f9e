"""Polygons of masks that may overlap, one face each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoseg.legend import Legend
from geoseg.polygons.arcs import trace
from geoseg.polygons.coverage import Faces, assemble
from geoseg.polygons.join import join
from geoseg.polygons.measure import pixel_size
from geoseg.polygons.shaping import Shaping, shaped
from geoseg.window import Window

_MARGIN = 16  # pixels around a mask that its outline may move into


class Mask(NamedTuple):
    """The pixels of one thing.

    Attributes:
        window: a rectangle of the raster.
        inside: (h, w) bool of the window.
        class_id: of the legend.
        confidence: 0 to 1.
    """

    window: Window
    inside: NDArray[np.bool_]
    class_id: int
    confidence: float


def outlines(
    masks: Iterable[Mask], shape: tuple[int, int], shaping: Shaping | None = None, grid: GeoBox | None = None, legend: Legend | None = None
) -> Faces:
    """Turn masks into polygons, each by itself: where two overlap, so do their polygons, and nothing lies between them.

    A mask of several parts is one face of several polygons. All of ``shaping`` but ``split`` and ``connectivity`` is done, against
    a background without limits; a mask smaller than ``min_area_m2`` is left out.

    Args:
        masks: in the order of their faces.
        shape: height and width of the raster.
        shaping: what is done to the outlines; None for nothing.
        grid: of the raster, for sizes in metres; None for pixels of 1 m.
        legend: the class names that ``shaping`` speaks of.

    Raises:
        OptionsError: if ``shaping`` names a class that the legend lacks.
    """
    shaping = shaping or Shaping()
    shaping.check(legend)
    scale = (1.0, 1.0) if grid is None or not shaping.moves else pixel_size(grid)
    return _gathered([face for mask in masks if (face := _outline(mask, shape, shaping, legend, scale)) is not None])


def _outline(mask: Mask, shape: tuple[int, int], shaping: Shaping, legend: Legend | None, scale: tuple[float, float]) -> Faces | None:
    """One mask as one face, None where nothing is left of it."""
    class_id, window = mask.class_id, mask.window
    if not shaping.moves:
        classes = np.where(mask.inside, np.uint8(class_id), np.uint8(0))
        arcs = trace([(Window.of(classes.shape), classes, None)], classes.shape)
    else:
        wide = Window(window.row - _MARGIN, window.col - _MARGIN, window.height + 2 * _MARGIN, window.width + 2 * _MARGIN) & Window.of(
            shape
        )
        assert wide is not None  # the mask lies in the raster
        background = 255 if class_id != 255 else 254
        classes = np.full(wide.shape, background, np.uint8)
        classes[window.within(wide)][mask.inside] = class_id
        arcs = trace([(Window.of(classes.shape), classes, None)], classes.shape)
        arcs = shaped(join(arcs), _of_one_class(shaping, class_id, legend), legend, np.arange(256, dtype=np.uint8), scale)
        window = wide
    faces = assemble(arcs)
    mine = np.flatnonzero(faces.class_id == class_id)
    return _single(faces, mine, window, mask) if len(mine) else None


def _of_one_class(shaping: Shaping, class_id: int, legend: Legend | None) -> Shaping:
    """The same, but the background is never too small."""
    if isinstance(shaping.min_area_m2, Mapping) or legend is None:
        return shaping
    return replace(shaping, min_area_m2={legend[class_id].name: shaping.min_area_m2})


def _single(faces: Faces, mine: NDArray[np.int64], window: Window, mask: Mask) -> Faces:
    """Some faces of a window as one face of the raster."""
    rings = np.concatenate([np.arange(faces.polygon_offsets[face], faces.polygon_offsets[face + 1]) for face in mine])
    corners = np.concatenate([np.arange(faces.ring_offsets[ring], faces.ring_offsets[ring + 1]) for ring in rings])
    pixels, corner = faces.pixels[mine], np.array([window.col, window.row])
    return Faces(
        class_id=np.array([mask.class_id], np.uint8),
        pixels=pixels.sum(keepdims=True),
        areas_px=faces.areas_px[mine].sum(keepdims=True),
        centroid=(pixels @ faces.centroid[mine] / pixels.sum() + corner)[None],
        confidence=np.array([mask.confidence], np.float32),
        part_offsets=np.array([0, len(mine)]),
        polygon_offsets=_offsets(np.diff(faces.polygon_offsets)[mine]),
        ring_offsets=_offsets(np.diff(faces.ring_offsets)[rings]),
        vertices=faces.vertices[corners] + corner.astype(faces.vertices.dtype),
    )


def _gathered(single: list[Faces]) -> Faces:
    """Faces of the same raster, one after the other."""

    def joined(name: str, empty: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([getattr(face, name) for face in single]) if single else empty

    def offsets(name: str) -> NDArray[np.int64]:
        return _offsets(np.concatenate([np.empty(0, np.int64), *(np.diff(getattr(face, name)) for face in single)]))

    return Faces(
        class_id=joined("class_id", np.empty(0, np.uint8)),
        pixels=joined("pixels", np.empty(0, np.int64)),
        areas_px=joined("areas_px", np.empty(0)),
        centroid=joined("centroid", np.empty((0, 2))),
        confidence=joined("confidence", np.empty(0, np.float32)),
        part_offsets=offsets("part_offsets"),
        polygon_offsets=offsets("polygon_offsets"),
        ring_offsets=offsets("ring_offsets"),
        vertices=joined("vertices", np.empty((0, 2), np.int32)),
    )


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
