"""Layers that open styled in a GIS."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import pyarrow as pa
import pyogrio

from geoseg.features import Features, published
from geoseg.legend import Legend, LegendClass

CARTESIAN = 'ENGCRS["Undefined Cartesian SRS",EDATUM["unknown"],CS[Cartesian,2],AXIS["(E)",east],AXIS["(N)",north],LENGTHUNIT["metre",1]]'
"""GDAL's name for the GeoPackage's own "undefined Cartesian" system, srs_id -1."""

_GDAL_OPTIONS = threading.Lock()  # they belong to the whole process
_EPOCH = "1970-01-01T00:00:00.000Z"
_RENDERER = 'enableorderby="0" forceraster="0" symbollevels="0"'


def write(path: str | Path, features: Features, metadata: Mapping[str, str], *, single_layer: bool = False) -> None:
    """Write a layer of polygons for each class of the legend, also the empty ones, or one of all, with styles for QGIS.

    The file appears under its name when it is complete, verified and durable. The same arguments give the same bytes.

    Args:
        path: target, replaced if it exists.
        features: of the whole raster.
        metadata: stated in the file. ``CREATED`` (ISO 8601), if there, also dates its layers; otherwise they bear
            the date 1970-01-01, so that a repeated run repeats the bytes.
        single_layer: put all classes into one layer ``polygons``, coloured by ``class_id``.

    Raises:
        OutputError: if the file cannot be written, or the disk is full.
    """
    layers = [_whole(features)] if single_layer else [_one_class(features, c) for c in features.legend.classes]
    with published(Path(path), ".gpkg") as part:
        with _gdal_options(_stamp(metadata)):
            for layer in layers:
                _write_layer(part, layer, features, metadata)
        _finish(part, layers, features.legend, _stamp(metadata))


@dataclass(frozen=True, slots=True)
class _Layer:
    """A table of the file: its words, its class (None for all), how many polygons it has, and its styles."""

    name: str
    title: str
    class_id: int | None
    count: int
    qml: str
    sld: str


def _one_class(features: Features, c: LegendClass) -> _Layer:
    renderer = f'<renderer-v2 type="singleSymbol" {_RENDERER}><symbols>{_symbol(0, c)}</symbols><rotation/><sizescale/></renderer-v2>'
    return _Layer(c.name, c.title, c.id, features.counts()[c.id], _qml(renderer), _sld(c.name, _rule(c)))


def _whole(features: Features) -> _Layer:
    classes = features.legend.classes
    categories = "".join(
        f'<category render="true" symbol="{number}" value="{features.value(c.id)}" label={quoteattr(c.title)}/>'
        for number, c in enumerate(classes)
    )
    symbols = "".join(_symbol(number, c) for number, c in enumerate(classes))
    renderer = (
        f'<renderer-v2 type="categorizedSymbol" attr="class_id" {_RENDERER}><categories>{categories}</categories>'
        f"<symbols>{symbols}</symbols><rotation/><sizescale/></renderer-v2>"
    )
    rules = "".join(_rule(c, features.value(c.id)) for c in classes)
    return _Layer("polygons", "Polygons", None, len(features.faces), _qml(renderer), _sld("polygons", rules))


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


def _write_layer(part: Path, layer: _Layer, features: Features, metadata: Mapping[str, str]) -> None:
    schema, crs = features.schema("geom"), features.grid.crs
    pyogrio.write_arrow(
        pa.RecordBatchReader.from_batches(schema, features.batches(schema, layer.class_id)),
        part,
        layer=layer.name,
        driver="GPKG",
        geometry_name="geom",
        geometry_type="MultiPolygon",
        crs=CARTESIAN if crs is None else crs.proj.to_wkt(),
        dataset_metadata=None if part.exists() else dict(metadata),
        dataset_options=None if part.exists() else {"VERSION": "1.3"},
        layer_options={
            "GEOMETRY_NAME": "geom",
            "FID": "fid",
            "SPATIAL_INDEX": "YES",
            "IDENTIFIER": layer.title,
            "DESCRIPTION": f"{layer.title}: polygons drawn by geoseg",
        },
    )


def _finish(part: Path, layers: Sequence[_Layer], legend: Legend, stamp: str) -> None:
    """Add the styles, date everything, and verify."""
    with contextlib.closing(sqlite3.connect(part, isolation_level=None)) as file:
        file.execute("PRAGMA synchronous = OFF")
        file.execute("PRAGMA journal_mode = DELETE")
        file.execute("BEGIN IMMEDIATE")
        _add_styles(file, layers, legend, stamp)
        if file.execute("SELECT 1 FROM sqlite_master WHERE name = 'gpkg_metadata_reference'").fetchone():
            file.execute("UPDATE gpkg_metadata_reference SET timestamp = ?", (stamp,))
        file.execute("COMMIT")
        verdict = file.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(f"integrity_check: {verdict}")
        for layer in layers:
            (found,) = file.execute(f'SELECT count(*) FROM "{layer.name}"').fetchone()
            if found != layer.count:
                raise sqlite3.DatabaseError(f"layer {layer.name} has {found} of {layer.count} polygons")


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


_STYLES_TABLE = """CREATE TABLE layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    f_table_catalog TEXT(256), f_table_schema TEXT(256), f_table_name TEXT(256), f_geometry_column TEXT(256),
    styleName TEXT(30), styleQML TEXT, styleSLD TEXT, useAsDefault BOOLEAN, description TEXT,
    owner TEXT(30), ui TEXT(30), update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')))"""

_STYLES_COUNT = """CREATE TRIGGER trigger_{event}_feature_count_layer_styles AFTER {event} ON layer_styles
BEGIN UPDATE gpkg_ogr_contents SET feature_count = feature_count {step} WHERE lower(table_name) = 'layer_styles'; END"""


def _add_styles(file: sqlite3.Connection, layers: Sequence[_Layer], legend: Legend, stamp: str) -> None:
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
        [(c.name, c.name, c.qml, c.sld, f"{c.title}, in the colours of legend {legend.name}", stamp) for c in layers],
    )


def _outline(rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    """A darker shade of a colour."""
    red, green, blue = (round(0.55 * value) for value in rgb)
    return red, green, blue


def _symbol(number: int, c: LegendClass) -> str:
    """QGIS's symbol of a class: QGIS 3.18 and later reads the options, earlier versions the props."""
    facts = {
        "border_width_map_unit_scale": "3x:0,0,0,0,0,0",
        "color": "{},{},{},255".format(*c.rgb),
        "joinstyle": "miter",
        "offset": "0,0",
        "offset_map_unit_scale": "3x:0,0,0,0,0,0",
        "offset_unit": "MM",
        "outline_color": "{},{},{},140".format(*_outline(c.rgb)),
        "outline_style": "solid",
        "outline_width": "0.1",
        "outline_width_unit": "MM",
        "style": "solid",
    }
    options = "".join(f'<Option name="{name}" type="QString" value="{value}"/>' for name, value in facts.items())
    props = "".join(f'<prop k="{name}" v="{value}"/>' for name, value in facts.items())
    return (
        f'<symbol name="{number}" type="fill" alpha="1" clip_to_extent="1" force_rhr="0">'
        f'<layer class="SimpleFill" enabled="1" pass="0" locked="0"><Option type="Map">{options}</Option>{props}</layer>'
        "</symbol>"
    )


def _qml(renderer: str) -> str:
    """QGIS style of a layer."""
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>"
        '<qgis version="3.22.0" styleCategories="Symbology" simplifyDrawingHints="1" simplifyLocal="1" simplifyMaxScale="1">'
        f"{renderer}<blendMode>0</blendMode><featureBlendMode>0</featureBlendMode>"
        "<layerOpacity>1</layerOpacity><layerGeometryType>2</layerGeometryType></qgis>"
    )


def _rule(c: LegendClass, value: int | None = None) -> str:
    """The same symbol for GeoServer and others, for all polygons or for those whose ``class_id`` has a value."""
    outline = "#{:02x}{:02x}{:02x}".format(*_outline(c.rgb))
    fill = {"fill": c.colour}
    stroke = {"stroke": outline, "stroke-opacity": "0.55", "stroke-width": "0.4"}

    def parameters(values: dict[str, str]) -> str:
        return "".join(f"<se:SvgParameter name={quoteattr(name)}>{value}</se:SvgParameter>" for name, value in values.items())

    chosen = (
        ""
        if value is None
        else (
            "<ogc:Filter><ogc:PropertyIsEqualTo><ogc:PropertyName>class_id</ogc:PropertyName>"
            f"<ogc:Literal>{value}</ogc:Literal></ogc:PropertyIsEqualTo></ogc:Filter>"
        )
    )
    return (
        f"<se:Rule><se:Name>{c.name}</se:Name><se:Description><se:Title>{escape(c.title)}</se:Title></se:Description>{chosen}"
        f"<se:PolygonSymbolizer><se:Fill>{parameters(fill)}</se:Fill><se:Stroke>{parameters(stroke)}</se:Stroke></se:PolygonSymbolizer>"
        "</se:Rule>"
    )


def _sld(name: str, rules: str) -> str:
    """Style of a layer, OGC SLD 1.1."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<StyledLayerDescriptor xmlns="http://www.opengis.net/sld" xmlns:se="http://www.opengis.net/se" '
        'xmlns:ogc="http://www.opengis.net/ogc" version="1.1.0">'
        f"<NamedLayer><se:Name>{name}</se:Name><UserStyle><se:Name>{name}</se:Name>"
        f"<se:FeatureTypeStyle>{rules}</se:FeatureTypeStyle></UserStyle></NamedLayer></StyledLayerDescriptor>"
    )
