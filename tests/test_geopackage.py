import resource
import signal
import sqlite3
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from geoseg.errors import OutputError
from geoseg.features import Features
from geoseg.geopackage import write
from geoseg.legend import ISPRS, Legend, LegendClass
from geoseg.polygons import Faces, face_areas, polygonize
from geoseg.polygons.measure import face_perimeters
from geoseg.window import Window

TRANSFORM = Affine(0.2, 0, 500_000, 0, -0.2, 3_070_000)
FACTS = {"GEOSEG_VERSION": "1.0", "MODEL": "<a & b>", "CREATED": "2024-05-01T10:00:00+02:00"}
CUSTOM = "+proj=laea +lat_0=27.6 +lon_0=85.5 +x_0=500 +y_0=700 +ellps=GRS80 +units=m +no_defs"


def speckled(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(1).choice([0, 1, 2, 3, 6], (height, width), p=[0.1, 0.6, 0.1, 0.1, 0.1]).astype(np.uint8)


def outline(classes: np.ndarray, *, confidence: bool = True) -> Faces:
    values = (np.arange(classes.size).reshape(classes.shape) % 255).astype(np.uint8) if confidence else None
    return polygonize([(Window.of(classes.shape), classes, values)], classes.shape)


def featured(classes: np.ndarray, grid: GeoBox | None = None, *, confidence: bool = True, **facts) -> Features:
    return Features.of(outline(classes, confidence=confidence), grid or grid_of(classes), ISPRS, **facts)


def grid_of(classes: np.ndarray, crs: str | None = "EPSG:32645", transform: Affine = TRANSFORM) -> GeoBox:
    return GeoBox(classes.shape, transform, crs)


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Features]:
    features = featured(speckled())
    path = tmp_path / "scene_polygons.gpkg"
    write(path, features, FACTS)
    return path, features


def query(path: Path, sql: str) -> list[tuple]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def test_layers_read_back_as_they_are(written):
    path, features = written
    faces, grid = features.faces, features.grid
    areas, perimeters = face_areas(faces, grid), face_perimeters(faces, grid)
    assert features.counts() == {c.id: int((faces.class_id == c.id).sum()) for c in ISPRS.classes}

    assert pyogrio.list_layers(path)[:6, 0].tolist() == [c.name for c in ISPRS.classes]
    for layer in ISPRS.classes:
        mine = faces.class_id == layer.id
        table = pyogrio.read_dataframe(path, layer=layer.name, fid_as_index=True)
        assert table.crs == "EPSG:32645"
        assert table.index.name == "fid"
        assert list(table.columns) == ["class_id", "class_name", "area_m2", "perimeter_m", "confidence", "geometry"]
        assert (table.class_id == layer.id).all()
        assert (table.class_name == layer.name).all()
        assert np.array_equal(table.area_m2, areas[mine])
        assert np.array_equal(table.perimeter_m, perimeters[mine])
        assert np.array_equal(table.confidence, faces.confidence[mine])
        parts = shapely.get_parts(table.geometry.to_numpy())
        assert shapely.equals(parts, faces.polygons(grid.affine)[mine]).all()
        info = pyogrio.read_info(path, layer=layer.name)
        assert info["geometry_type"] == "MultiPolygon"
        assert info["ogr_types"] == ["OFTInteger", "OFTString", "OFTReal", "OFTReal", "OFTReal"]


def test_the_file_is_a_plain_geopackage_1_3(written):
    path, features = written
    faces = features.faces
    head = path.read_bytes()[:100]

    assert head[18:20] == b"\1\1"  # journal mode DELETE
    assert head[68:72] == b"GPKG"
    assert int.from_bytes(head[60:64]) == 10300
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    contents = query(path, "SELECT table_name, identifier, description FROM gpkg_contents WHERE data_type = 'features'")
    assert contents == [(c.name, c.title, f"{c.title}: polygons drawn by geoseg") for c in ISPRS.classes]
    for layer in ISPRS.classes:
        types = {row[1]: row[2] for row in query(path, f"PRAGMA table_info({layer.name})")}
        assert types == {
            "fid": "INTEGER",
            "geom": "MULTIPOLYGON",
            "class_id": "SMALLINT",
            "class_name": "TEXT",
            "area_m2": "REAL",
            "perimeter_m": "REAL",
            "confidence": "FLOAT",
        }
        assert query(path, f"SELECT count(*) FROM rtree_{layer.name}_geom") == [((faces.class_id == layer.id).sum(),)]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_each_layer_has_one_default_style(written):
    columns = "f_table_name, f_table_schema, f_geometry_column, styleName, styleQML, styleSLD, useAsDefault"
    rows = query(written[0], f"SELECT {columns} FROM layer_styles")

    assert [row[0] for row in rows] == [c.name for c in ISPRS.classes]
    for layer, (_, schema, column, name, qml, sld, default) in zip(ISPRS.classes, rows, strict=True):
        assert (schema, column, name, default) == ("", "geom", layer.name, 1)
        symbol = ElementTree.fromstring(qml).find("renderer-v2/symbols/symbol/layer")
        colour = "{},{},{},255".format(*layer.rgb)
        assert symbol.find("Option/Option[@name='color']").get("value") == colour
        assert symbol.find("prop[@k='color']").get("v") == colour
        assert layer.colour in [e.text for e in ElementTree.fromstring(sld).iter() if e.get("name") == "fill"]


def test_facts_are_stated(written):
    assert pyogrio.read_info(written[0], layer="tree")["dataset_metadata"] == FACTS
    dates = query(written[0], "SELECT last_change FROM gpkg_contents UNION SELECT timestamp FROM gpkg_metadata_reference")
    assert dates == [("2024-05-01T08:00:00.000Z",)]


def test_a_repeated_run_repeats_the_bytes(written, tmp_path):
    path, features = written
    before = path.read_bytes()
    write(path, features, FACTS)
    assert path.read_bytes() == before

    for name in ("one.gpkg", "two.gpkg"):
        write(tmp_path / name, features, {"GEOSEG_VERSION": "1.0", "CREATED": "yesterday"})
    assert (tmp_path / "one.gpkg").read_bytes() == (tmp_path / "two.gpkg").read_bytes()


def test_what_is_left_of_a_killed_run_does_not_matter(written):
    path, features = written
    before = path.read_bytes()
    path.with_name(path.name + ".part.gpkg").write_bytes(before[:5000])

    write(path, features, FACTS)

    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_batches_do_not_show(written, tmp_path, monkeypatch):
    path, features = written
    monkeypatch.setattr("geoseg.features._BATCH_BYTES", 1000)

    write(tmp_path / "small.gpkg", features, FACTS)

    rows = "SELECT fid, geom, class_id, class_name, area_m2, confidence FROM impervious ORDER BY fid"
    assert query(tmp_path / "small.gpkg", rows) == query(path, rows)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:2263", CUSTOM, 'LOCAL_CS["site",UNIT["foot",0.3048]]', None])
def test_any_crs_is_kept(tmp_path, crs):
    classes = speckled(5, 6)
    transform = Affine(1e-6, 0, 85.5, 0, -1e-6, 27.6) if crs == "EPSG:4326" else Affine(0.2, 0, 1000, 0, -0.2, 2000)
    grid = grid_of(classes, crs, transform)
    features = featured(classes, grid)

    write(tmp_path / "scene.gpkg", features, {})

    table = pyogrio.read_dataframe(tmp_path / "scene.gpkg", layer="impervious")
    polygons = features.faces.polygons(transform)[features.faces.class_id == 1]
    assert shapely.equals(shapely.get_parts(table.geometry.to_numpy()), polygons).all()
    assert (table.area_m2 > 0).all()
    if crs is None:
        assert query(tmp_path / "scene.gpkg", "SELECT DISTINCT srs_id FROM gpkg_contents WHERE data_type = 'features'") == [(-1,)]
    elif crs.startswith("LOCAL"):
        assert table.crs.name == "site"
    else:
        assert table.crs.to_2d().equals(grid.crs.proj, ignore_axis_order=True)


@pytest.mark.parametrize(
    "transform", [Affine(0.2, 0, 0, 0, 0.2, 0), Affine(0.3, 0.1, 5, 0.1, -0.3, 9), Affine(0.01, 0, 1e9, 0, -0.01, 1e9)]
)
def test_any_transform_gives_valid_polygons(tmp_path, transform):
    classes = speckled()
    features = featured(classes, grid_of(classes, None, transform))
    faces = features.faces

    write(tmp_path / "scene.gpkg", features, {})

    layers = [pyogrio.read_dataframe(tmp_path / "scene.gpkg", layer=c.name).geometry.to_numpy() for c in ISPRS.classes]
    parts = shapely.get_parts(np.concatenate(layers))
    assert len(parts) == len(faces)
    assert shapely.is_valid(parts).all()
    assert shapely.is_ccw(shapely.get_exterior_ring(parts)).all()
    assert shapely.area(parts).sum() == pytest.approx(faces.pixels.sum() * abs(transform.determinant), rel=1e-4)


def test_nothing_but_empty_layers_for_an_empty_raster(tmp_path):
    features = featured(np.zeros((3, 4), np.uint8))

    write(tmp_path / "a.gpkg", features, {})

    assert features.counts() == dict.fromkeys(ISPRS.ids, 0)
    assert [len(pyogrio.read_dataframe(tmp_path / "a.gpkg", layer=c.name)) for c in ISPRS.classes] == [0] * 6


def test_unknown_confidence_is_null(tmp_path):
    write(tmp_path / "a.gpkg", featured(speckled(5, 6), confidence=False), {})

    [(total, known, measured)] = query(tmp_path / "a.gpkg", "SELECT count(*), count(confidence), count(area_m2) FROM impervious")
    assert total == measured > known == 0


def test_a_class_without_a_name_is_refused():
    with pytest.raises(OutputError, match=r"class 9, legend 'isprs' has 1, 2, 3, 4, 5, 6"):
        featured(np.full((2, 2), 9, np.uint8))


@pytest.fixture
def single(tmp_path: Path) -> tuple[Path, Features]:
    features = featured(speckled(), values={3: -7, 6: 70_000}, columns={"zonal_1": np.arange(len(outline(speckled())), dtype=float)})
    write(tmp_path / "single.gpkg", features, FACTS, single_layer=True)
    return tmp_path / "single.gpkg", features


def test_a_single_layer_holds_all_classes_in_their_order(single):
    path, features = single
    faces = features.faces

    assert pyogrio.list_layers(path)[:, 0].tolist() == ["polygons", "layer_styles"]
    table = pyogrio.read_dataframe(path, layer="polygons")
    assert list(table.columns)[:2] + list(table.columns)[-2:] == ["class_id", "class_name", "zonal_1", "geometry"]
    assert table.class_id.tolist() == [{3: -7, 6: 70_000}.get(i, i) for i in faces.class_id.tolist()]
    assert table.class_name.tolist() == [ISPRS[i].name for i in faces.class_id.tolist()]
    assert table.zonal_1.tolist() == list(range(len(faces)))
    assert shapely.equals(shapely.get_parts(table.geometry.to_numpy()), faces.polygons(features.grid.affine)).all()


def test_a_single_layer_is_coloured_by_its_values(single):
    [(table, qml, sld)] = query(single[0], "SELECT f_table_name, styleQML, styleSLD FROM layer_styles")
    renderer = ElementTree.fromstring(qml).find("renderer-v2")
    symbols = {s.get("name"): s.find("layer/Option/Option[@name='color']").get("value") for s in renderer.findall("symbols/symbol")}
    shown = {c.get("value"): (c.get("label"), symbols[c.get("symbol")]) for c in renderer.findall("categories/category")}
    rules = [
        (rule.find(".//{*}Literal").text, rule.find(".//{*}SvgParameter[@name='fill']").text)
        for rule in ElementTree.fromstring(sld).findall(".//{*}Rule")
    ]

    assert (table, renderer.get("type"), renderer.get("attr")) == ("polygons", "categorizedSymbol", "class_id")
    values = {c.id: {3: "-7", 6: "70000"}.get(c.id, str(c.id)) for c in ISPRS.classes}
    assert shown == {values[c.id]: (c.title, "{},{},{},255".format(*c.rgb)) for c in ISPRS.classes}
    assert rules == [(values[c.id], c.colour) for c in ISPRS.classes]


def test_titles_are_text_in_the_styles(tmp_path):
    legend = Legend(name="odd", classes=(LegendClass(id=1, name="odd", title='<a> & "b"', colour="#123456"),))
    classes = np.ones((2, 2), np.uint8)
    for single_layer in (False, True):
        write(tmp_path / "a.gpkg", Features.of(outline(classes), grid_of(classes), legend), {}, single_layer=single_layer)
        for qml, sld in query(tmp_path / "a.gpkg", "SELECT styleQML, styleSLD FROM layer_styles"):
            assert {e.text for e in ElementTree.fromstring(sld).iter() if e.tag.endswith("}Title")} == {'<a> & "b"'}
            assert [e.get("label") for e in ElementTree.fromstring(qml).iter("category")] == ['<a> & "b"'] * single_layer


def test_what_cannot_be_written_is_refused_in_one_line(tmp_path):
    features = featured(speckled(5, 6))
    (tmp_path / "taken").mkdir()

    for path in (tmp_path / "missing" / "a.gpkg", tmp_path / "taken"):
        with pytest.raises(OutputError, match=r"^[^\n]*cannot be written[^\n]*$"):
            write(path, features, {})
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("room", [10_000, 130_000, 600_000])
def test_a_full_disk_leaves_what_was_there(written, room):
    path, *_ = written
    before = path.read_bytes()
    features = featured(speckled(300, 300))
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OutputError, match="free space"):
            write(path, features, FACTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
