"""Layers that open styled in a GIS."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import pyarrow as pa
import pyogrio
import pyogrio.errors
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoseg import polygons
from geoseg.errors import OutputError
from geoseg.legend import Legend, LegendClass
from geoseg.polygons import Faces

_BATCH_BYTES = 1 << 24  # of geometry handed to GDAL at a time
_GDAL_OPTIONS = threading.Lock()  # they belong to the whole process
_EPOCH = "1970-01-01T00:00:00.000Z"

# GDAL's name for the GeoPackage's own "undefined Cartesian" system, srs_id -1.
_CARTESIAN = 'ENGCRS["Undefined Cartesian SRS",EDATUM["unknown"],CS[Cartesian,2],AXIS["(E)",east],AXIS["(N)",north],LENGTHUNIT["metre",1]]'

_SCHEMA = pa.schema(
    [
        pa.field("geom", pa.binary(), metadata={"ARROW:extension:name": "ogc.wkb"}),
        pa.field("class_id", pa.int16()),
        pa.field("class_name", pa.string()),
        pa.field("area_m2", pa.float64()),
        pa.field("confidence", pa.float32()),
    ]
)


def write_geopackage(
    path: str | Path,
    faces: Faces,
    grid: GeoBox,
    legend: Legend,
    metadata: Mapping[str, str],
    *,
    areas_m2: NDArray[np.float64] | None = None,
) -> dict[int, int]:
    """Write one layer of polygons for each class of the legend, also the empty ones, with styles for QGIS.

    The file appears under its name when it is complete, verified and durable. The same arguments give the same bytes.

    Args:
        path: target, replaced if it exists.
        faces: of the whole raster.
        grid: of the raster.
        legend: the class of every face is in it.
        metadata: stated in the file. ``CREATED`` (ISO 8601), if there, also dates its layers; otherwise they bear
            the date 1970-01-01, so that a repeated run repeats the bytes.
        areas_m2: (F,) area of each face on the ground, if it is known already.

    Returns:
        Number of polygons of each class id.

    Raises:
        OutputError: if the file cannot be written, or the disk is full.
    """
    path = Path(path)
    _check_classes(path, faces, legend)
    areas = polygons.face_areas(faces, grid) if areas_m2 is None else areas_m2
    part = path.with_name(path.name + ".part.gpkg")
    try:
        part.unlink(missing_ok=True)
        with _gdal_options(_stamp(metadata)):
            for layer in legend.classes:
                _write_layer(part, layer, _batches(layer, faces, grid, areas), grid, metadata)
        counts = {layer.id: int(faces.count()[layer.id]) for layer in legend.classes}
        _finish(part, legend, counts, _stamp(metadata))
        _make_durable(part, path)
    except (OSError, sqlite3.Error, pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OutputError(f"{path}: cannot be written ({reason}); free space, or choose a folder that can be written") from error
    finally:
        for leftover in (part, part.with_name(part.name + "-journal")):
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)
    return counts


def _check_classes(path: Path, faces: Faces, legend: Legend) -> None:
    unknown = sorted(set(np.unique(faces.class_id).tolist()) - set(legend.ids))
    if unknown:
        raise OutputError(
            f"{path}: the class raster holds class {unknown[0]}, legend {legend.name!r} has {', '.join(map(str, legend.ids))}; "
            "use the legend of the model that made the raster"
        )


@contextlib.contextmanager
def _gdal_options(stamp: str) -> Iterator[None]:
    """Let GDAL date what it writes with ``stamp``, and not wait for the disk after each of its steps.

    The file is made durable once, when it is finished.
    """
    options = {"OGR_CURRENT_DATE": stamp, "OGR_SQLITE_SYNCHRONOUS": "OFF"}
    with _GDAL_OPTIONS:
        before = {name: pyogrio.get_gdal_config_option(name) for name in options}
        pyogrio.set_gdal_config_options(options)
        try:
            yield
        finally:
            pyogrio.set_gdal_config_options(before)


def _write_layer(part: Path, layer: LegendClass, batches: Iterator[pa.RecordBatch], grid: GeoBox, metadata: Mapping[str, str]) -> None:
    pyogrio.write_arrow(
        pa.RecordBatchReader.from_batches(_SCHEMA, batches),
        part,
        layer=layer.name,
        driver="GPKG",
        geometry_name="geom",
        geometry_type="MultiPolygon",
        crs=_CARTESIAN if grid.crs is None else grid.crs.proj.to_wkt(),
        dataset_metadata=None if part.exists() else dict(metadata),
        dataset_options=None if part.exists() else {"VERSION": "1.3"},
        layer_options={
            "GEOMETRY_NAME": "geom",
            "FID": "fid",
            "SPATIAL_INDEX": "YES",
            "IDENTIFIER": layer.title,
            "DESCRIPTION": f"{layer.title}: polygons predicted by geoseg",
        },
    )


def _batches(layer: LegendClass, faces: Faces, grid: GeoBox, areas: NDArray[np.float64]) -> Iterator[pa.RecordBatch]:
    """The faces of a class, in their order, some megabytes at a time."""
    mine = np.flatnonzero(faces.class_id == layer.id)
    filled = np.cumsum(polygons.sizes(faces)[mine])
    for chosen in np.split(mine, np.flatnonzero(np.diff(filled // _BATCH_BYTES)) + 1):
        data, offsets = polygons.encode(faces, chosen, grid.affine)
        count = len(chosen)
        geometry = pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)])
        columns = [
            geometry,
            pa.array(np.full(count, layer.id, np.int16)),
            pa.repeat(pa.scalar(layer.name), count),
            pa.array(areas[chosen], from_pandas=True),
            pa.array(faces.confidence[chosen], from_pandas=True),
        ]
        yield pa.record_batch(columns, schema=_SCHEMA)


def _finish(part: Path, legend: Legend, counts: Mapping[int, int], stamp: str) -> None:
    """Add the styles, date everything, and verify."""
    with contextlib.closing(sqlite3.connect(part, isolation_level=None)) as file:
        file.execute("PRAGMA synchronous = OFF")
        file.execute("PRAGMA journal_mode = DELETE")
        file.execute("BEGIN IMMEDIATE")
        _add_styles(file, legend, stamp)
        if file.execute("SELECT 1 FROM sqlite_master WHERE name = 'gpkg_metadata_reference'").fetchone():
            file.execute("UPDATE gpkg_metadata_reference SET timestamp = ?", (stamp,))
        file.execute("COMMIT")
        verdict = file.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(f"integrity_check: {verdict}")
        for layer in legend.classes:
            (found,) = file.execute(f'SELECT count(*) FROM "{layer.name}"').fetchone()
            if found != counts[layer.id]:
                raise sqlite3.DatabaseError(f"layer {layer.name} has {found} of {counts[layer.id]} polygons")


def _stamp(metadata: Mapping[str, str]) -> str:
    """A moment as the GeoPackage standard writes it: UTC, milliseconds."""
    if "CREATED" not in metadata:
        return _EPOCH
    try:
        created = datetime.fromisoformat(metadata["CREATED"])
    except ValueError:
        return _EPOCH
    moment = created.astimezone(UTC) if created.tzinfo else created.replace(tzinfo=UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _make_durable(part: Path, path: Path) -> None:
    """Move a finished file to its name; neither a crash nor a power cut leaves a half-written one there."""
    with part.open("rb") as written:
        os.fsync(written.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


_STYLES_TABLE = """CREATE TABLE layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    f_table_catalog TEXT(256), f_table_schema TEXT(256), f_table_name TEXT(256), f_geometry_column TEXT(256),
    styleName TEXT(30), styleQML TEXT, styleSLD TEXT, useAsDefault BOOLEAN, description TEXT,
    owner TEXT(30), ui TEXT(30), update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')))"""

_STYLES_COUNT = """CREATE TRIGGER trigger_{event}_feature_count_layer_styles AFTER {event} ON layer_styles
BEGIN UPDATE gpkg_ogr_contents SET feature_count = feature_count {step} WHERE lower(table_name) = 'layer_styles'; END"""


def _add_styles(file: sqlite3.Connection, legend: Legend, stamp: str) -> None:
    """Make the table in which QGIS keeps default styles, as QGIS itself makes it."""
    file.execute(_STYLES_TABLE)
    file.execute(
        "INSERT INTO gpkg_contents (table_name, data_type, identifier, description, last_change, srs_id) "
        "VALUES ('layer_styles', 'attributes', 'layer_styles', 'Styles of the layers', ?, 0)",
        (stamp,),
    )
    file.execute("INSERT INTO gpkg_ogr_contents VALUES ('layer_styles', 0)")
    for event, step in (("insert", "+ 1"), ("delete", "- 1")):
        file.execute(_STYLES_COUNT.format(event=event, step=step))
    # f_table_schema has to be '', not NULL: otherwise QGIS does not see the style.
    file.executemany(
        "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, styleQML, "
        "styleSLD, useAsDefault, description, owner, update_time) VALUES ('', '', ?, 'geom', ?, ?, ?, 1, ?, '', ?)",
        [(c.name, c.name, _qml(c), _sld(c), f"{c.title}, in the colours of legend {legend.name}", stamp) for c in legend.classes],
    )


def _outline(rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    """A darker shade of a colour."""
    red, green, blue = (round(0.55 * value) for value in rgb)
    return red, green, blue


def _qml(layer: LegendClass) -> str:
    """QGIS style of a layer: QGIS 3.18 and later reads the options, earlier versions the props."""
    facts = {
        "border_width_map_unit_scale": "3x:0,0,0,0,0,0",
        "color": "{},{},{},255".format(*layer.rgb),
        "joinstyle": "miter",
        "offset": "0,0",
        "offset_map_unit_scale": "3x:0,0,0,0,0,0",
        "offset_unit": "MM",
        "outline_color": "{},{},{},140".format(*_outline(layer.rgb)),
        "outline_style": "solid",
        "outline_width": "0.1",
        "outline_width_unit": "MM",
        "style": "solid",
    }
    options = "".join(f'<Option name="{name}" type="QString" value="{value}"/>' for name, value in facts.items())
    props = "".join(f'<prop k="{name}" v="{value}"/>' for name, value in facts.items())
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>"
        '<qgis version="3.22.0" styleCategories="Symbology" simplifyDrawingHints="1" simplifyLocal="1" simplifyMaxScale="1">'
        '<renderer-v2 type="singleSymbol" enableorderby="0" forceraster="0" symbollevels="0"><symbols>'
        '<symbol name="0" type="fill" alpha="1" clip_to_extent="1" force_rhr="0">'
        f'<layer class="SimpleFill" enabled="1" pass="0" locked="0"><Option type="Map">{options}</Option>{props}</layer>'
        "</symbol></symbols><rotation/><sizescale/></renderer-v2>"
        "<blendMode>0</blendMode><featureBlendMode>0</featureBlendMode>"
        "<layerOpacity>1</layerOpacity><layerGeometryType>2</layerGeometryType></qgis>"
    )


def _sld(layer: LegendClass) -> str:
    """The same style for GeoServer and others, OGC SLD 1.1."""
    outline = "#{:02x}{:02x}{:02x}".format(*_outline(layer.rgb))
    fill = {"fill": layer.colour}
    stroke = {"stroke": outline, "stroke-opacity": "0.55", "stroke-width": "0.4"}

    def parameters(values: dict[str, str]) -> str:
        return "".join(f"<se:SvgParameter name={quoteattr(name)}>{value}</se:SvgParameter>" for name, value in values.items())

    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<StyledLayerDescriptor xmlns="http://www.opengis.net/sld" xmlns:se="http://www.opengis.net/se" version="1.1.0">'
        f"<NamedLayer><se:Name>{layer.name}</se:Name><UserStyle><se:Name>{layer.name}</se:Name>"
        f"<se:FeatureTypeStyle><se:Rule><se:Name>{layer.name}</se:Name>"
        f"<se:Description><se:Title>{escape(layer.title)}</se:Title></se:Description>"
        f"<se:PolygonSymbolizer><se:Fill>{parameters(fill)}</se:Fill><se:Stroke>{parameters(stroke)}</se:Stroke></se:PolygonSymbolizer>"
        "</se:Rule></se:FeatureTypeStyle></UserStyle></NamedLayer></StyledLayerDescriptor>"
    )
