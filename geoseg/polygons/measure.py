"""True areas of pixels and faces."""

from __future__ import annotations

import numpy as np
import pyproj
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoseg.polygons.coverage import Faces, on_map

_NODES = 65  # a side of the lattice on which pixel areas are computed; between its nodes they are interpolated


def face_areas(faces: Faces, grid: GeoBox) -> NDArray[np.float64]:
    """Area of each face on the ground, m².

    Pixel count times the true area of a pixel at the face's centroid: exact where pixel areas change linearly over a
    face, which the faces of a map do to a few parts per million, and a face as large as a continent does not.

    Returns:
        (F,) square metres; NaN where the grid leaves the domain of its CRS.
    """
    areas: NDArray[np.float64] = faces.pixels * pixel_areas(grid, faces.centroid)
    return areas


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
    lattice = np.stack(np.meshgrid(_middles(width), _middles(height)), axis=-1)
    areas = _exact_areas(grid, lattice)
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
    height, width = grid.shape
    cols, rows = np.linspace(0, width, _NODES), np.linspace(0, height, _NODES)
    lattice = _exact_areas(grid, np.stack(np.meshgrid(cols, rows), axis=-1))
    areas: NDArray[np.float64] = _interpolated(lattice, at * ((_NODES - 1) / width, (_NODES - 1) / height))
    lost = ~np.isfinite(areas)
    if lost.any():  # a node around them lies outside of the domain
        areas[lost] = _exact_areas(grid, at[lost])
    return areas


def _middles(length: int) -> NDArray[np.float64]:
    count = min(length, _NODES)
    return np.asarray((np.arange(count) + 0.5) * (length / count), np.float64)


def _interpolated(lattice: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bilinear values of a lattice (n, n) at places (N, 2) given as column and row of the lattice."""
    col, row = np.clip(at, 0, _NODES - 2).astype(np.intp).T
    u, v = at[:, 0] - col, at[:, 1] - row
    with np.errstate(invalid="ignore"):
        above = lattice[row, col] * (1 - u) + lattice[row, col + 1] * u
        below = lattice[row + 1, col] * (1 - u) + lattice[row + 1, col + 1] * u
        areas: NDArray[np.float64] = above * (1 - v) + below * v
    return areas


def _planar_area(grid: GeoBox) -> float:
    unit = grid.crs.proj.axis_info[0].unit_conversion_factor if grid.crs is not None and grid.crs.proj.axis_info else 1.0
    return abs(grid.affine.determinant) * unit**2


def _exact_areas(grid: GeoBox, at: NDArray[np.float64]) -> NDArray[np.float64]:
    """True pixel areas at places (..., 2) in pixels, by the parallelogram of two short steps on the ellipsoid.

    (Geodesic polygon areas are good to a tenth of a square metre, which is more than many a pixel.)
    """
    height, width = grid.shape
    steps = np.diag([max(0.5, width / 2048), max(0.5, height / 2048)])
    places = on_map(grid.affine, np.stack([at + sign * step for step in steps for sign in (1, -1)]))
    on_ellipsoid = None if grid.crs is None else _geocentric(grid.crs.proj, places)
    if on_ellipsoid is None:
        return np.full(at.shape[:-1], _planar_area(grid))
    col_after, col_before, row_after, row_before = on_ellipsoid
    with np.errstate(invalid="ignore"):
        cross = np.cross(col_after - col_before, row_after - row_before)
    areas: NDArray[np.float64] = np.linalg.norm(cross, axis=-1) / (4 * steps[0, 0] * steps[1, 1])
    areas[~np.isfinite(areas)] = np.nan
    return areas


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
