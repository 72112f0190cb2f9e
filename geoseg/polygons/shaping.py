"""From a class raster to polygons as a map wants them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoseg.errors import OptionsError
from geoseg.legend import Legend
from geoseg.polygons.arcs import Arcs, Block, trace
from geoseg.polygons.coverage import Faces, assemble
from geoseg.polygons.join import join
from geoseg.polygons.measure import pixel_size
from geoseg.polygons.regularize import regularize
from geoseg.polygons.simplify import simplify
from geoseg.polygons.slivers import merge_small
from geoseg.polygons.smooth import smooth
from geoseg.window import Window

if TYPE_CHECKING:
    from geoseg.polygons.split import Read

Method = Literal["dp", "vw"]

_ROWS = 512


@dataclass(frozen=True, slots=True)
class Shaping:
    """How the outlines of a class raster become those of a map; as it stands, they stay the outlines of the pixels.

    Every step keeps the polygons a coverage, and keeps the border of the valid area where it is.

    Attributes:
        min_area_m2: smaller polygons become part of a neighbour; one number, or one for each class name.
        min_hole_m2: smaller holes are filled.
        simplify_m: how far outlines may move when they lose points, metres; 0 keeps all points.
        simplify_method: ``dp``, Douglas and Peucker 1973, or ``vw``, Visvalingam and Whyatt 1993 (the square of ``simplify_m`` is the
            area).
        smooth: pull the stairs of the pixels straight, by less than half a pixel.
        regularize: names of classes whose outlines get right angles.
        split: names of classes whose touching instances, such as cars in a row, become polygons of their own.
        connectivity: 4, or 8 to make one polygon of those of a class that touch in a corner.
    """

    min_area_m2: float | Mapping[str, float] = 0.0
    min_hole_m2: float = 0.0
    simplify_m: float = 0.0
    simplify_method: Method = "dp"
    smooth: bool = False
    regularize: tuple[str, ...] = ()
    split: tuple[str, ...] = ()
    connectivity: Literal[4, 8] = 4

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            OptionsError: if a size is negative or not a number, or a word is unknown.
        """
        areas = self.min_area_m2 if isinstance(self.min_area_m2, Mapping) else {"": self.min_area_m2}
        sizes = {f"min_area_m2 {name}".strip(): area for name, area in areas.items()}
        for name, size in (sizes | {"min_hole_m2": self.min_hole_m2, "simplify_m": self.simplify_m}).items():
            if not 0 <= size < np.inf:
                raise OptionsError(f"{name} is {size}; it must be 0 or more")
        if self.simplify_method not in get_args(Method):
            raise OptionsError(f"simplify_method {self.simplify_method!r} is unknown; choose one of {', '.join(get_args(Method))}")
        if self.connectivity not in (4, 8):
            raise OptionsError(f"connectivity is {self.connectivity}; it must be 4 or 8")
        if self.split and self.connectivity == 8:
            raise OptionsError("split parts what touches along an edge, connectivity 8 joins what touches in a corner; choose one of them")

    @property
    def moves(self) -> bool:
        """Whether any outline may differ from that of the pixels."""
        small = self.min_area_m2.values() if isinstance(self.min_area_m2, Mapping) else [self.min_area_m2]
        return bool(any(small) or self.min_hole_m2 or self.simplify_m or self.smooth or self.regularize)

    def check(self, legend: Legend | None) -> None:
        """Refuse names of classes that a legend lacks.

        Raises:
            OptionsError: if one is named.
        """
        for values in (self.min_area_m2, dict.fromkeys((*self.regularize, *self.split), 1.0)):
            _table(values, legend)


def polygonize(
    blocks: Iterable[Block],
    shape: tuple[int, int],
    shaping: Shaping | None = None,
    grid: GeoBox | None = None,
    legend: Legend | None = None,
    read: Read | None = None,
) -> Faces:
    """Turn a class raster into polygons, the same whatever the layout of the blocks.

    Args:
        blocks: windows, classes (H, W) uint8, and confidence (H, W) uint8 or None; they cover each pixel once, in any
            order; rows of blocks from top to bottom are best. Class 0 is outside, confidence 255 unknown.
        shape: height and width of the raster.
        shaping: what is done to the outlines; None for nothing.
        grid: of the raster, for sizes in metres; None for pixels of 1 m.
        legend: the class names that ``shaping`` speaks of.
        read: classes and confidence of any window of the same raster; needed if ``shaping`` splits.

    Raises:
        CoverageError: if the blocks do not cover each pixel once.
        OptionsError: if ``shaping`` names a class that the legend lacks.
    """
    shaping = shaping or Shaping()
    shaping.check(legend)
    arcs, class_of = trace(blocks, shape), np.arange(256, dtype=np.uint8)
    if shaping.split:
        from geoseg.polygons.split import face_windows, patched, split  # scikit-image takes a third of a second to import

        if read is None:
            raise TypeError("polygonize() needs read to split")
        chosen = np.flatnonzero(_table(dict.fromkeys(shaping.split, 1.0), legend)).tolist()
        patches = split(read, face_windows(arcs), arcs.class_id, chosen)
        bands = ((window, *read(window)) for window in Window.of(shape).split(_ROWS, shape[1]))
        arcs, class_of = trace(patched(bands, patches), shape), patches.class_of
    if shaping.moves or shaping.split:
        arcs = shaped(join(arcs), shaping, legend, class_of, (1.0, 1.0) if grid is None else pixel_size(grid))
    return assemble(arcs, shaping.connectivity)


def shaped(arcs: Arcs, shaping: Shaping, legend: Legend | None, class_of: NDArray[np.uint8], scale: tuple[float, float]) -> Arcs:
    """All steps between tracing and drawing, in their order.

    Args:
        arcs: joined.
        shaping: what is done.
        legend: the class names that it speaks of.
        class_of: (256,) the classes of the codes of instances.
        scale: metres of a pixel along columns and along rows.

    Raises:
        OptionsError: if ``shaping`` names a class that the legend lacks.
    """
    least, pixel_m2 = _table(shaping.min_area_m2, legend)[class_of], scale[0] * scale[1]
    if least.any() or shaping.min_hole_m2:
        arcs = merge_small(arcs, least / pixel_m2, shaping.min_hole_m2 / pixel_m2)
    traced = arcs = replace(arcs, class_id=class_of[arcs.class_id])
    if shaping.smooth:
        arcs = smooth(arcs)
    if shaping.simplify_m:
        arcs = simplify(arcs, shaping.simplify_m, shaping.simplify_method, scale)
    if shaping.regularize:
        chosen = _table(dict.fromkeys(shaping.regularize, 1.0), legend) > 0
        arcs = regularize(arcs, traced, chosen[arcs.class_id], shaping.simplify_m, scale)
    return arcs


def _table(values: float | Mapping[str, float], legend: Legend | None) -> NDArray[np.float64]:
    """A number for each class id (256,).

    Raises:
        OptionsError: if a name is not in the legend.
    """
    if not isinstance(values, Mapping):
        return np.full(256, float(values))
    table, ids = np.zeros(256), {} if legend is None else {c.name: c.id for c in legend.classes}
    for name, value in values.items():
        if name not in ids:
            raise OptionsError(f"class {name!r} is not in the legend; it has {', '.join(ids) or 'no names'}")
        table[ids[name]] = value
    return table
