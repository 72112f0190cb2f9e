"""The part of a scene that is wanted."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyogrio
import pyogrio.errors
import rasterio.features
import shapely
from pyproj import CRS, Transformer

from geoseg.errors import GeoreferenceError, OptionsError
from geoseg.polygons.coverage import on_map
from geoseg.window import Window

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox


class Region:
    """A window of the scene and, inside it, the pixels whose centre lies in an area of interest.

    Attributes:
        window: the smallest rectangle of pixels that holds everything wanted.
        area: geometry in pixel coordinates (x = column, y = row), or None for the whole window.
    """

    def __init__(self, window: Window, area: shapely.Geometry | None = None) -> None:
        """Describe a region."""
        self.window, self.area = window, area

    def mask(self, window: Window) -> np.ndarray:
        """Which pixels of ``window`` are wanted, ``(H, W)`` bool."""
        if self.area is None:
            return np.ones(window.shape, bool)
        here = shapely.affinity.translate(self.area, -window.col, -window.row)
        near = shapely.intersects(here, shapely.box(0, 0, window.width, window.height))
        if not near:
            return np.zeros(window.shape, bool)
        mask: np.ndarray = rasterio.features.geometry_mask([here], window.shape, rasterio.Affine.identity(), invert=True)
        return mask

    @property
    def facts(self) -> dict[str, Any]:
        """What identifies the region, JSON-able."""
        digest = None if self.area is None else hashlib.sha256(shapely.to_wkb(self.area)).hexdigest()
        return {"window": [self.window.row, self.window.col, self.window.height, self.window.width], "area_sha256": digest}

    @classmethod
    def of(cls, grid: GeoBox, bbox: Sequence[float] | None = None, aoi: Path | None = None) -> Region:
        """The region that a bounding box and an area of interest leave of a grid.

        Args:
            grid: of the scene.
            bbox: xmin, ymin, xmax, ymax in the scene's CRS.
            aoi: a vector file of polygons in any CRS.

        Raises:
            OptionsError: if the box is not one, the file cannot be read, or nothing of the scene is left.
            GeoreferenceError: if the file has a CRS but the scene has none.
        """
        height, width = (int(n) for n in grid.shape)
        whole = Window(0, 0, height, width)
        if bbox is None and aoi is None:
            return cls(whole)
        parts: list[shapely.Geometry] = []
        if bbox is not None:
            if len(bbox) != 4 or not all(map(math.isfinite, bbox)) or bbox[0] >= bbox[2] or bbox[1] >= bbox[3]:
                raise OptionsError(f"bbox {tuple(bbox)} is not xmin,ymin,xmax,ymax with xmin < xmax and ymin < ymax in the scene's CRS")
            parts.append(shapely.box(bbox[0], bbox[1], bbox[2], bbox[3]))
        if aoi is not None:
            parts.append(_read_area(aoi, grid))
        inverse = ~grid.transform
        wanted = shapely.intersection_all([shapely.transform(part, lambda points: on_map(inverse, points)) for part in parts])
        left, top, right, bottom = shapely.bounds(wanted)
        if shapely.is_empty(wanted) or right <= 0 or bottom <= 0 or left >= width or top >= height:
            raise OptionsError(
                f"bbox/aoi and the scene do not overlap; the scene covers {tuple(round(x, 6) for x in grid.boundingbox.bbox)}"
            )
        window = Window.between(math.floor(top + 1e-6), math.floor(left + 1e-6), math.ceil(bottom - 1e-6), math.ceil(right - 1e-6)) & whole
        if window is None:
            raise OptionsError("bbox/aoi and the scene share less than a pixel")
        return cls(window, None if aoi is None else wanted)


def _read_area(path: Path, grid: GeoBox) -> shapely.Geometry:
    """The union of a file's polygons, in the scene's CRS."""
    try:
        meta, _, geometries, _ = pyogrio.raw.read(path, columns=[])
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, OSError) as error:
        raise OptionsError(f"{path}: not a readable vector file ({' '.join(str(error).split())})") from error
    shapes = shapely.from_wkb(geometries)
    shapes = shapes[np.isin(shapely.get_type_id(shapes), (3, 6))]
    if not len(shapes):
        raise OptionsError(f"{path}: holds no polygons; an area of interest needs some")
    union = shapely.union_all(shapely.make_valid(shapes))
    if meta["crs"] is None:
        return union
    if grid.crs is None:
        raise GeoreferenceError(f"{path}: has CRS {meta['crs']} but the scene has none; give the scene a CRS first")
    change = Transformer.from_crs(CRS.from_user_input(meta["crs"]), CRS.from_wkt(grid.crs.to_wkt()), always_xy=True)
    dense = shapely.segmentize(union, max(np.ptp(np.array(shapely.bounds(union)).reshape(2, 2), axis=0)) / 1000)
    moved: shapely.Geometry = shapely.transform(dense, lambda xy: np.column_stack(change.transform(xy[:, 0], xy[:, 1])))
    return moved
