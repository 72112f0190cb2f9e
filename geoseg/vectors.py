"""Polygons into a file of any format."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pyproj
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj.exceptions import ProjError

from geoseg import geopackage
from geoseg.errors import GeoreferenceError, OptionsError, OutputError
from geoseg.features import Features, published
from geoseg.polygons import on_map

FORMATS: Final[Mapping[str, tuple[str, ...]]] = {
    "gpkg": (".gpkg",),
    "parquet": (".parquet", ".geoparquet"),
    "fgb": (".fgb",),
    "geojsonl": (".geojsonl", ".geojsons", ".ndjson"),
    "pmtiles": (".pmtiles",),
}
"""The formats, and how the names of their files end; the first is what we use."""

_WORLD_M = 2 * math.pi * 6_378_137  # circumference in web mercator
_TILE_UNITS = 4096  # a side of a vector tile
_DIGITS = 8  # of degrees: a millimetre


def format_of(path: str | Path, chosen: str | None = None) -> str:
    """The format of a file to be: what was chosen, else what its name says.

    Raises:
        OptionsError: if neither says it, or they disagree.
    """
    suffix = Path(path).suffix.lower()
    named = next((name for name, suffixes in FORMATS.items() if suffix in suffixes), None)
    if chosen is not None and chosen not in FORMATS:
        raise OptionsError(f"format {chosen!r} is unknown; choose one of {', '.join(FORMATS)}")
    if chosen is None and named is None:
        known = ", ".join(suffixes[0] for suffixes in FORMATS.values())
        raise OptionsError(f"{path}: {suffix or 'no suffix'} names no format; end it in one of {known}, or choose one with --format")
    if (named and chosen and named != chosen) or (chosen == "gpkg" and named is None):
        raise OptionsError(f"{path}: is no name for the format {chosen}; end it in {FORMATS[chosen][0]}, or choose another --format")
    return chosen or named or ""


def write(path: str | Path, features: Features, metadata: Mapping[str, str], *, kind: str, single_layer: bool = False) -> None:
    """Write polygons, all or nothing; the same attributes in every format.

    ``gpkg`` is a GeoPackage, see `geopackage.write`. ``parquet`` is GeoParquet 1.1 with bounding boxes, ``fgb`` FlatGeobuf with
    its spatial index, ``geojsonl`` a GeoJSON feature a line in WGS 84 (RFC 7946, RFC 8142 without the record separators), ``pmtiles``
    vector tiles in web mercator: a copy to look at, its outlines are rounded and cut at tiles. All but ``gpkg`` are one layer.

    Args:
        path: target, replaced if it exists.
        features: of the whole raster.
        metadata: stated in the file where the format has a place for it (gpkg, parquet, fgb).
        kind: one of `FORMATS`.
        single_layer: put all classes of a GeoPackage into one layer.

    Raises:
        OutputError: if the file cannot be written, or does not read back as it was written.
        GeoreferenceError: if the format needs longitude and latitude, and the raster does not say where it is.
    """
    writers: dict[str, Callable[[Path, Features, Mapping[str, str]], None]] = {
        "parquet": _write_parquet,
        "fgb": _write_flatgeobuf,
        "geojsonl": _write_geojson_lines,
        "pmtiles": _write_tiles,
    }
    if kind == "gpkg":
        geopackage.write(path, features, metadata, single_layer=single_layer)
        return
    with published(Path(path), FORMATS[kind][0]) as part:
        writers[kind](part, features, metadata)


def _write_parquet(part: Path, features: Features, metadata: Mapping[str, str]) -> None:
    """GeoParquet 1.1: WKB, zstd, a bounding box a row."""
    corner = pa.struct([pa.field(name, pa.float64(), nullable=False) for name in ("xmin", "ymin", "xmax", "ymax")])
    schema = features.schema("geometry")
    plain = pa.schema([field.remove_metadata() for field in schema])
    boxes = _boxes(features)
    geo = {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {
            "geometry": {
                "encoding": "WKB",
                "geometry_types": ["MultiPolygon"] if len(boxes) else [],
                "crs": None if features.grid.crs is None else features.grid.crs.proj.to_json_dict(),
                "orientation": "counterclockwise",
                "covering": {"bbox": {name: ["bbox", name] for name in corner.names}},
            }
            | ({"bbox": [*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist()]} if len(boxes) else {})
        },
    }
    whole = plain.append(pa.field("bbox", corner, nullable=False)).with_metadata({**metadata, "geo": json.dumps(geo)})
    with pq.ParquetWriter(part, whole, compression="zstd", version="2.6") as file:
        for chosen in features.portions():
            box = pa.StructArray.from_arrays([pa.array(boxes[chosen, side]) for side in range(4)], fields=list(corner))
            file.write_batch(pa.record_batch([*features.batch(schema, chosen).columns, box], schema=whole), row_group_size=len(chosen) or 1)
    _require(pq.read_metadata(part).num_rows, features)


def _boxes(features: Features) -> NDArray[np.float64]:
    """Bounding box of each face on the map, (F, 4): xmin, ymin, xmax, ymax."""
    faces = features.faces
    if not len(faces):
        return np.empty((0, 4))
    starts = faces.ring_offsets[faces.face_offsets[:-1]]
    points = on_map(features.grid.affine, faces.vertices.astype(np.float64))
    return np.hstack([np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)])


def _write_flatgeobuf(part: Path, features: Features, metadata: Mapping[str, str]) -> None:
    facts = "; ".join(f"{key}: {value}" for key, value in metadata.items())
    options = {"SPATIAL_INDEX": "YES", "TITLE": "Polygons", "DESCRIPTION": f"Polygons drawn by geoseg. {facts}"}
    _write_ogr(part, features, "FlatGeobuf", layer_options=options)
    _require(pyogrio.read_info(part, force_feature_count=True)["features"], features)


def _write_geojson_lines(part: Path, features: Features, metadata: Mapping[str, str]) -> None:  # noqa: ARG001 it has no place for them
    """GDAL brings them to WGS 84 and turns shells counter-clockwise, as RFC 7946 asks."""
    _to("EPSG:4326", features.grid, "GeoJSON")
    if not len(features.faces):
        part.touch()
        return
    _write_ogr(part, features, "GeoJSONSeq", layer_options={"RS": "NO", "COORDINATE_PRECISION": str(_DIGITS)})
    with part.open("rb") as file:
        _require(sum(piece.count(b"\n") for piece in iter(lambda: file.read(1 << 20), b"")), features)


def _write_tiles(part: Path, features: Features, metadata: Mapping[str, str]) -> None:  # noqa: ARG001 it has no place for them
    """From the zoom at which the scene is about a tile to that at which a pixel is two units of one."""
    if "w" not in pyogrio.list_drivers().get("PMTiles", ""):
        raise OutputError(
            f"PMTiles: GDAL {'.'.join(map(str, pyogrio.__gdal_version__))} of pyogrio was built without its driver; "
            "install the pyogrio wheel from PyPI, or write --format fgb and convert it with tippecanoe"
        )
    if not len(features.faces):
        raise OutputError("PMTiles: there is no polygon, and GDAL writes no tiles of nothing; choose another --format")
    to_tiles, (height, width) = _to("EPSG:3857", features.grid, "PMTiles"), features.grid.shape
    middle = np.array([[width / 2 - 0.5, height / 2], [width / 2 + 0.5, height / 2]])
    (x, y), (end_x, end_y) = to_tiles(middle)
    corners = to_tiles(np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64))
    pixel, extent = math.hypot(end_x - x, end_y - y), float(np.ptp(corners, axis=0).max())
    if not (math.isfinite(extent) and pixel > 0):
        raise GeoreferenceError("PMTiles: a corner of the raster has no place in web mercator; choose another --format")
    finest = min(max(math.ceil(math.log2(_WORLD_M / _TILE_UNITS / (pixel / 2))), 0), 22)
    coarsest = min(max(math.floor(math.log2(_WORLD_M / extent)), 0), finest)
    options = {"MINZOOM": str(coarsest), "MAXZOOM": str(finest), "NAME": "polygons", "DESCRIPTION": "Polygons drawn by geoseg"}
    _write_ogr(part, features, "PMTiles", dataset_options=options)
    with part.open("rb") as file:
        if file.read(7) != b"PMTiles":
            raise OSError("it does not read back as PMTiles")


def _write_ogr(part: Path, features: Features, driver: str, **options: Any) -> None:
    schema, crs = features.schema("geometry"), features.grid.crs
    pyogrio.write_arrow(
        pa.RecordBatchReader.from_batches(schema, features.batches(schema)),
        part,
        layer="polygons",
        driver=driver,
        geometry_name="geometry",
        geometry_type="MultiPolygon",
        crs=geopackage.CARTESIAN if crs is None else crs.proj.to_wkt(),
        **options,
    )


def _to(crs: str, grid: GeoBox, name: str) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """The way from pixels (N, 2) to another CRS.

    Raises:
        GeoreferenceError: if there is none.
    """
    if grid.crs is None:
        raise GeoreferenceError(f"{name}: needs longitude and latitude, and the raster has no CRS; choose another --format")
    try:
        transformer = pyproj.Transformer.from_crs(grid.crs.proj, crs, always_xy=True)
    except ProjError as error:
        raise GeoreferenceError(
            f"{name}: needs longitude and latitude, which {grid.crs.proj.name} does not give; choose another --format"
        ) from error

    def moved(points: NDArray[np.float64]) -> NDArray[np.float64]:
        on_ground = on_map(grid.affine, points)
        return np.stack(transformer.transform(on_ground[:, 0], on_ground[:, 1]), axis=-1)

    return moved


def _require(found: int, features: Features) -> None:
    if found != len(features.faces):
        raise OSError(f"it reads back with {found} of {len(features.faces)} polygons")
