"""True areas, lengths and mean values of faces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import pyproj
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoseg.errors import GeoreferenceError
from geoseg.polygons.coverage import Faces, on_map
from geoseg.polygons.kernel import Kernel
from geoseg.window import Window

_NODES = 65  # a side of the lattice on which the size of pixels is computed; between its nodes it is interpolated

Measure: TypeAlias = Callable[[GeoBox, NDArray[np.float64]], NDArray[np.float64]]


def face_areas(faces: Faces, grid: GeoBox) -> NDArray[np.float64]:
    """Area of each face on the ground, m².

    Its area in pixels times the true area of a pixel at the face's centroid: exact where pixel areas change linearly over
    a face, which the faces of a map do to a few parts per million, and a face as large as a continent does not.

    Returns:
        (F,) square metres; NaN where the grid leaves the domain of its CRS.
    """
    areas: NDArray[np.float64] = faces.areas_px * pixel_areas(grid, faces.centroid)
    return areas


def face_perimeters(faces: Faces, grid: GeoBox) -> NDArray[np.float64]:
    """Length of the boundary of each face on the ground, holes included, m.

    An edge of ``(dx, dy)`` pixels is ``sqrt(E dx² + 2 F dx dy + G dy²)`` long, where E, F and G are the first fundamental
    form of the way from pixels to the ellipsoid (Gauss 1827), taken at the face's centroid.

    Returns:
        (F,) metres; NaN where the grid leaves the domain of its CRS.
    """
    metric = _sampled(_metric, grid, faces.centroid)
    return _perimeters(faces.face_offsets, faces.ring_offsets, faces.vertices, metric)


def zonal_means(faces: Faces, blocks: Iterable[tuple[Window, NDArray[Any], NDArray[np.bool_]]], bands: int) -> NDArray[np.float64]:
    """Mean of each band over the pixels of each face, in one pass over the raster.

    A pixel belongs to the face that its centre lies in, so each pixel counts once, also where the boundaries are
    simplified. Along a row the pixels between two crossings of a boundary are a difference of two running sums: the cost
    is that of the boundaries, not of faces times pixels.

    Args:
        faces: of a class raster on the same grid.
        blocks: rows of the raster over its full width: window, values (B, h, w) and where they are data (h, w).
        bands: B.

    Returns:
        (F, B); NaN where a face holds the centre of no pixel with data.
    """
    totals = np.zeros((len(faces), bands + 1))
    tops, bottoms = np.empty(0), np.empty(0)
    if len(faces):
        starts, rows = faces.ring_offsets[faces.face_offsets[:-1]], faces.vertices[:, 1].astype(np.float64)
        tops, bottoms = np.minimum.reduceat(rows, starts), np.maximum.reduceat(rows, starts)
    outlines = (faces.face_offsets, faces.ring_offsets, faces.vertices)
    for window, values, valid in blocks:
        sums = np.zeros((window.height, window.width + 1))
        for column, layer in enumerate((valid, *values)):
            np.cumsum(np.where(valid, layer, 0), axis=1, dtype=np.float64, out=sums[:, 1:])
            _add_rows(totals[:, column], sums, window.row, *outlines, tops, bottoms)
    with np.errstate(invalid="ignore"):
        means: NDArray[np.float64] = totals[:, 1:] / totals[:, :1]
    return means


def class_areas(grid: GeoBox, counts: NDArray[np.int64]) -> dict[int, float]:
    """Area of each class on the ground, m², from pixel counts alone.

    The area of a pixel is the mean over the grid, so `face_areas` differ where a class lies off the centre of a grid
    whose scale varies: by less than one part in a thousand for a UTM scene of 100 km.

    Args:
        grid: of the raster.
        counts: (256,) pixels of each class id.

    Returns:
        Square metres of each id from 0 to 255.
    """
    height, width = grid.shape
    areas = _area(grid, np.stack(np.meshgrid(_middles(width), _middles(height)), axis=-1))
    known = np.isfinite(areas)
    mean = float(areas[known].mean()) if known.any() else np.nan
    return {class_id: float(count) * mean if count else 0.0 for class_id, count in enumerate(counts)}


def pixel_areas(grid: GeoBox, at: NDArray[np.float64]) -> NDArray[np.float64]:
    """True area of a pixel at each place of a grid, m².

    One rule for degrees, feet, web mercator and UTM: how far the place moves on the ellipsoid when the pixel
    coordinates change. Where there is no ellipsoid (no CRS, or an engineering one) it is the planar area.

    Args:
        grid: of the raster.
        at: (N, 2) column and row; the middle of the first pixel is (0.5, 0.5).

    Returns:
        (N,) square metres; NaN where the grid leaves the domain of its CRS.
    """
    areas: NDArray[np.float64] = _sampled(_area, grid, at)[:, 0]
    return areas


def pixel_size(grid: GeoBox) -> tuple[float, float]:
    """Size of a pixel along columns and along rows, metres on the ground, in the middle of the grid.

    Raises:
        GeoreferenceError: if the middle lies outside of the domain of the grid's CRS.
    """
    height, width = grid.shape
    along_cols, _, along_rows = _metric(grid, np.array([width / 2, height / 2]))
    if not math.isfinite(along_cols * along_rows):
        name = "the grid" if grid.crs is None else grid.crs.proj.name
        raise GeoreferenceError(
            f"the middle of the raster lies where {name} is not defined: its pixels have no size; mend its transform or CRS"
        )
    return float(along_cols), float(along_rows)


def _middles(length: int) -> NDArray[np.float64]:
    count = min(length, _NODES)
    return np.asarray((np.arange(count) + 0.5) * (length / count), np.float64)


def _sampled(measure: Measure, grid: GeoBox, at: NDArray[np.float64]) -> NDArray[np.float64]:
    """A smooth measure (..., K) of places (..., 2), at places (N, 2): (N, K), computed on a lattice and interpolated."""
    height, width = grid.shape
    cols, rows = np.linspace(0, width, _NODES), np.linspace(0, height, _NODES)
    lattice = measure(grid, np.stack(np.meshgrid(cols, rows), axis=-1))
    values = _interpolated(lattice, at * ((_NODES - 1) / width, (_NODES - 1) / height))
    lost = ~np.isfinite(values).all(axis=1)
    if lost.any():  # a node around them lies outside of the domain
        values[lost] = measure(grid, at[lost])
    return values


def _area(grid: GeoBox, at: NDArray[np.float64]) -> NDArray[np.float64]:
    """True pixel areas (..., 1): of the parallelogram of a step along columns and one along rows."""
    along_cols, along_rows = _steps(grid, at)
    areas: NDArray[np.float64] = np.linalg.norm(np.cross(along_cols, along_rows), axis=-1, keepdims=True)
    return areas


def _metric(grid: GeoBox, at: NDArray[np.float64]) -> NDArray[np.float64]:
    """The roots of E and G with F between them (..., 3); roots, because these change evenly, up to the poles."""
    along_cols, along_rows = _steps(grid, at)
    crossed = (along_cols * along_rows).sum(axis=-1)
    return np.stack([np.linalg.norm(along_cols, axis=-1), crossed, np.linalg.norm(along_rows, axis=-1)], axis=-1)


def _steps(grid: GeoBox, at: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far places (..., 2) move on the ellipsoid, metres in space, a pixel along columns and a pixel along rows: (2, ..., 3).

    By short steps to either side. (Geodesic polygon areas are good to a tenth of a square metre, which is more than many
    a pixel.)
    """
    height, width = grid.shape
    steps = np.diag([max(0.5, width / 2048), max(0.5, height / 2048)])
    places = on_map(grid.affine, np.stack([at + sign * step for step in steps for sign in (1, -1)]))
    on_ellipsoid = None if grid.crs is None else _geocentric(grid.crs.proj, places)
    if on_ellipsoid is None:
        a, b, _, d, e, _, *_ = grid.affine
        unit = grid.crs.proj.axis_info[0].unit_conversion_factor if grid.crs is not None and grid.crs.proj.axis_info else 1.0
        planar = unit * np.array([[a, d, 0], [b, e, 0]])
        return np.broadcast_to(planar.reshape(2, *(1,) * (at.ndim - 1), 3), (2, *at.shape[:-1], 3))
    col_after, col_before, row_after, row_before = on_ellipsoid
    with np.errstate(invalid="ignore"):
        moved = np.stack([(col_after - col_before) / (2 * steps[0, 0]), (row_after - row_before) / (2 * steps[1, 1])])
    moved[~np.isfinite(moved)] = np.nan
    return moved


def _geocentric(crs: pyproj.CRS, places: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Geocentric coordinates (..., 3) in metres of map coordinates (..., 2), not finite outside of the CRS's domain.

    None if the CRS has no ellipsoid, or a projection that PROJ can name but not compute.
    """
    geodetic, ellipsoid = crs.geodetic_crs, crs.ellipsoid
    if geodetic is None or ellipsoid is None:
        return None
    try:
        transformer = pyproj.Transformer.from_crs(crs, geodetic, always_xy=True)
    except pyproj.exceptions.ProjError:
        return None
    radians = geodetic.axis_info[0].unit_conversion_factor
    lon, lat = (np.asarray(angle) * radians for angle in transformer.transform(places[..., 0], places[..., 1]))
    major, minor = ellipsoid.semi_major_metre, ellipsoid.semi_minor_metre
    with np.errstate(invalid="ignore"):
        normal = major**2 / np.hypot(major * np.cos(lat), minor * np.sin(lat))
        across, up = normal * np.cos(lat), (minor / major) ** 2 * normal * np.sin(lat)
        return np.stack([across * np.cos(lon), across * np.sin(lon), up], axis=-1)


@Kernel
def _interpolated(lattice: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bilinear values (N, K) of a lattice (n, n, K) at places (N, 2) given as column and row of the lattice."""
    last, depth = lattice.shape[0] - 2, lattice.shape[2]
    values = np.empty((len(at), depth))
    for place in range(len(at)):
        col, row = min(max(int(at[place, 0]), 0), last), min(max(int(at[place, 1]), 0), last)
        u, v = at[place, 0] - col, at[place, 1] - row
        for layer in range(depth):
            above = lattice[row, col, layer] * (1 - u) + lattice[row, col + 1, layer] * u
            below = lattice[row + 1, col, layer] * (1 - u) + lattice[row + 1, col + 1, layer] * u
            values[place, layer] = above * (1 - v) + below * v
    return values


@Kernel
def _perimeters(
    face_offsets: NDArray[np.int64], ring_offsets: NDArray[np.int64], vertices: NDArray[Any], metric: NDArray[np.float64]
) -> NDArray[np.float64]:
    lengths = np.zeros(len(metric))
    for face in range(len(metric)):
        along_cols, crossed, along_rows = metric[face, 0] ** 2, 2 * metric[face, 1], metric[face, 2] ** 2
        for ring in range(face_offsets[face], face_offsets[face + 1]):
            for point in range(ring_offsets[ring], ring_offsets[ring + 1] - 1):
                dx = float(vertices[point + 1, 0] - vertices[point, 0])
                dy = float(vertices[point + 1, 1] - vertices[point, 1])
                lengths[face] += math.sqrt(max(along_cols * dx * dx + crossed * dx * dy + along_rows * dy * dy, 0.0))
        if math.isnan(metric[face, 0] + metric[face, 1] + metric[face, 2]):
            lengths[face] = np.nan
    return lengths


@Kernel
def _add_rows(
    totals: NDArray[np.float64],
    sums: NDArray[np.float64],
    first: int,
    face_offsets: NDArray[np.int64],
    ring_offsets: NDArray[np.int64],
    vertices: NDArray[Any],
    tops: NDArray[np.float64],
    bottoms: NDArray[np.float64],
) -> None:
    """Add to ``totals`` (F,) the values of the pixels of each face in some rows, of which ``sums`` (h, w + 1) are the running sums."""
    stop, width = first + sums.shape[0], sums.shape[1] - 1
    for face in range(len(totals)):
        if bottoms[face] <= first or tops[face] >= stop:
            continue
        for ring in range(face_offsets[face], face_offsets[face + 1]):
            for point in range(ring_offsets[ring], ring_offsets[ring + 1] - 1):
                x, y = float(vertices[point, 0]), float(vertices[point, 1])
                end_x, end_y = float(vertices[point + 1, 0]), float(vertices[point + 1, 1])
                side = -1.0  # the face lies on the left: east of an edge that runs down, west of one that runs up
                if y > end_y:
                    x, y, end_x, end_y, side = end_x, end_y, x, y, 1.0
                for row in range(max(first, math.ceil(y - 0.5)), min(stop, math.ceil(end_y - 0.5))):
                    crossing = x + (row + 0.5 - y) / (end_y - y) * (end_x - x)
                    totals[face] += side * sums[row - first, min(max(math.ceil(crossing - 0.5), 0), width)]
