"""Class rasters of any origin into files of any format: real files, read back by other libraries."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pyproj
import pytest
import rasterio
import rasterio.features
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp

from geoseg.classes import ClassRaster
from geoseg.cog import write_cog, write_scalar_cog
from geoseg.errors import BandsError, GeoreferenceError, OptionsError, OutputError, SceneError
from geoseg.legend import ISPRS
from geoseg.polygons import Shaping
from geoseg.scene import Policy
from geoseg.vectors import FORMATS, format_of
from geoseg.verbs.vectorize import vectorize
from geoseg.window import Window
from tests.conftest import PLACE, make_scene
from tests.test_cli import geoseg

LAYER = {"gpkg": {"layer": "polygons"}}
SIDE = """<PAMDataset><PAMRasterBand band="1">{}</PAMRasterBand></PAMDataset>"""
CATEGORIES = SIDE.format("<CategoryNames><Category/><Category>Water body</Category><Category>2nd growth</Category></CategoryNames>")
TABLE = SIDE.format(
    '<GDALRasterAttributeTable><FieldDefn index="0"><Name>V</Name><Type>0</Type><Usage>5</Usage></FieldDefn>'
    '<FieldDefn index="1"><Name>N</Name><Type>2</Type><Usage>2</Usage></FieldDefn>'
    + "".join(f'<FieldDefn index="{use - 4}"><Name>C</Name><Type>0</Type><Usage>{use}</Usage></FieldDefn>' for use in (6, 7, 8))
    + "".join(f"<Row><F>{value}</F><F>{name}</F><F>1</F><F>2</F><F>{value}</F></Row>" for value, name in ((1, "Eau é"), (2, "Eau é")))
    + "</GDALRasterAttributeTable>"
)


def patches(height: int = 40, width: int = 50, values: tuple[int, ...] = (0, 1, 2, 3), dtype: str = "uint8") -> np.ndarray:
    coarse = np.random.default_rng(2).choice(values, (height // 5, width // 5))
    return np.kron(coarse, np.ones((5, 5), int)).astype(dtype)


def save(path: Path, classes: np.ndarray, *, palette: dict[int, tuple[int, int, int]] | None = None, **options: Any) -> Path:
    make_scene(path, classes[None] if classes.ndim == 2 else classes, **options)
    if palette:
        with rasterio.open(path, "r+") as file:
            file.write_colormap(1, palette)
    return path


def save_own(path: Path, classes: np.ndarray) -> Path:
    """As `predict` writes it."""
    grid = GeoBox(classes.shape, PLACE, "EPSG:32645")
    write_cog([(Window.of(classes.shape), classes)], path, grid, ISPRS, {"GEOSEG_VERSION": "0.1", "MODEL": "tiny 1"})
    return path


def table_of(path: Path, kind: str = "gpkg") -> geopandas.GeoDataFrame:
    return geopandas.read_parquet(path) if kind == "parquet" else pyogrio.read_dataframe(path, **LAYER.get(kind, {}))


def drawn(raster: Path, tmp_path: Path, **options: Any) -> geopandas.GeoDataFrame:
    """The polygons of a raster, in one layer."""
    vectorize(raster, tmp_path / "drawn.gpkg", single_layer=True, force=True, **options)
    return table_of(tmp_path / "drawn.gpkg")


def burnt(table: geopandas.GeoDataFrame, shape: tuple[int, int], outside: int) -> np.ndarray:
    """The class raster that polygons stand for."""
    shapes = zip(table.geometry, table.class_id.tolist(), strict=True)
    return rasterio.features.rasterize(shapes, shape, fill=outside, transform=PLACE, dtype="int64")


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    return save_own(tmp_path / "scene_classes.tif", patches())


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_holds_the_same_polygons_and_attributes(raster, tmp_path, kind):
    out = tmp_path / f"out{FORMATS[kind][0]}"
    reference = drawn(raster, tmp_path)

    facts = vectorize(raster, out, single_layer=True)

    table = table_of(out, kind)
    attributes = ["class_id", "class_name", "area_m2", "perimeter_m", "confidence"]
    assert (facts["format"], facts["polygons"]) == (kind, len(reference))
    if kind == "pmtiles":
        assert set(attributes) <= set(table.columns)
        assert set(table.class_name) == {"impervious", "building", "low_vegetation"}
        assert out.read_bytes()[:7] == b"PMTiles"
        return
    assert list(table.columns) == sorted([*attributes, "geometry"], key=list(table.columns).index)
    assert len(table) == len(reference)
    order = np.lexsort((table.area_m2, table.perimeter_m, table.class_id))
    expected = np.lexsort((reference.area_m2, reference.perimeter_m, reference.class_id))
    for name in attributes[:4]:
        assert table[name].to_numpy()[order].tolist() == reference[name].to_numpy()[expected].tolist()
    assert table.confidence.isna().all()
    back = table.to_crs(reference.crs).geometry
    assert shapely.area(back.to_numpy()).sum() == pytest.approx(shapely.area(reference.geometry.to_numpy()).sum(), rel=1e-4)
    if kind != "geojsonl":
        assert np.array_equal(burnt(table, (40, 50), 0), patches())
    assert not [path for path in tmp_path.iterdir() if ".part" in path.name]


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "pmtiles"])
def test_a_repeated_run_repeats_the_bytes(raster, tmp_path, kind):
    outs = [tmp_path / f"{name}{FORMATS[kind][0]}" for name in ("one", "two")]

    for out in outs:
        vectorize(raster, out)

    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_geoparquet_follows_its_specification(raster, tmp_path):
    vectorize(raster, tmp_path / "out.parquet")

    file = pq.ParquetFile(tmp_path / "out.parquet")
    geo = json.loads(file.schema_arrow.metadata[b"geo"])
    column = geo["columns"][geo["primary_column"]]
    assert (geo["version"], column["encoding"], column["geometry_types"]) == ("1.1.0", "WKB", ["MultiPolygon"])
    assert pyproj.CRS.from_json_dict(column["crs"]) == "EPSG:32645"
    assert file.schema_arrow.metadata[b"MODEL"] == b"tiny 1"
    table = geopandas.read_parquet(tmp_path / "out.parquet")
    assert column["bbox"] == pytest.approx(table.total_bounds.tolist())
    boxes = file.read(["bbox"]).column(0).combine_chunks().flatten()
    assert np.array_equal(np.column_stack(boxes), table.bounds.to_numpy())
    west, south, *_ = table.total_bounds
    near = geopandas.read_parquet(tmp_path / "out.parquet", bbox=(west, south, west + 0.1, south + 0.1))
    assert len(near) == table.intersects(shapely.box(west, south, west + 0.1, south + 0.1)).sum() < len(table)


def test_geojson_lines_are_features_in_degrees(raster, tmp_path):
    vectorize(raster, tmp_path / "out.geojsonl")

    features = [json.loads(line) for line in (tmp_path / "out.geojsonl").read_text().splitlines()]
    polygons = shapely.get_parts([shapely.geometry.shape(feature["geometry"]) for feature in features])
    assert {feature["type"] for feature in features} == {"Feature"}
    assert not any("crs" in feature for feature in features)
    assert shapely.is_ccw(shapely.get_exterior_ring(polygons)).all()
    assert shapely.coverage_is_valid(polygons)
    lon, lat = pyproj.Transformer.from_crs("EPSG:32645", "EPSG:4326", always_xy=True).transform(PLACE.c, PLACE.f)
    assert shapely.total_bounds(polygons)[[0, 3]] == pytest.approx([lon, lat], abs=1e-6)


def test_flatgeobuf_says_where_it_comes_from(raster, tmp_path):
    vectorize(raster, tmp_path / "out.fgb")

    info = pyogrio.read_info(tmp_path / "out.fgb")
    assert "MODEL: tiny 1" in info["layer_metadata"]["DESCRIPTION"]
    assert info["capabilities"]["fast_spatial_filter"]


@pytest.mark.parametrize("kind", FORMATS)
def test_an_empty_raster_gives_an_empty_file(tmp_path, kind):
    own = save_own(tmp_path / "own.tif", np.zeros((10, 10), np.uint8))
    out = tmp_path / f"out{FORMATS[kind][0]}"

    if kind == "pmtiles":
        with pytest.raises(OutputError, match="there is no polygon"):
            vectorize(own, out)
        return

    assert vectorize(own, out)["polygons"] == 0
    assert out.exists()
    if kind in ("parquet", "fgb"):
        assert len(table_of(out, kind)) == 0


def test_our_own_raster_gives_back_its_legend(raster, tmp_path):
    facts = vectorize(raster, tmp_path / "out.gpkg")

    assert pyogrio.list_layers(tmp_path / "out.gpkg")[:6, 0].tolist() == [c.name for c in ISPRS.classes]
    counts = {name: of_class["polygons"] for name, of_class in facts["classes"].items()}
    shapes = [int(value) for _, value in rasterio.features.shapes(patches())]
    assert counts == {c.name: shapes.count(c.id) for c in ISPRS.classes}
    assert facts["classes"]["car"] == {"id": 5, "polygons": 0, "area_m2": 0}
    assert facts["classes"]["building"]["area_m2"] == pytest.approx((patches() == 2).sum() * 0.01, rel=1e-3)
    assert ClassRaster.describe(raster).legend.classes == ISPRS.classes
    stated = pyogrio.read_info(tmp_path / "out.gpkg", layer="car")["dataset_metadata"]
    assert stated["MODEL"] == "tiny 1"
    assert (stated["CLASSES"], stated["SHAPING"]) == ("scene_classes.tif", "none")


def test_our_own_raster_without_its_side_file_keeps_its_colours(raster):
    Path(f"{raster}.aux.xml").unlink()

    found = ClassRaster.describe(raster).legend.classes

    assert [(c.name, c.colour) for c in found] == [(f"class_{i}", ISPRS[i].colour) for i in (1, 2, 3)]


@pytest.mark.parametrize(
    ("values", "dtype", "options", "outside"),
    [
        ((1, 2, 255), "int16", {"nodata": 255}, 255),
        ((1, 7, 255), "uint8", {}, None),
        ((0, 1, 2), "uint8", {}, None),
        ((0, 1, 2), "uint8", {"nodata": 1}, 1),
        ((0, 5, 15), "uint8", {"nodata": 0, "nbits": 4}, 0),
        ((0, 1), "uint8", {"nbits": 1}, None),
        ((-9999, -3, 300, 4000), "int16", {"nodata": -9999}, -9999),
        ((11, 65_535), "uint16", {"nodata": 65_535, "tiled": True, "blockxsize": 16, "blockysize": 16}, 65_535),
        ((0, 70_000, 4_000_000_000), "uint32", {}, None),
        ((-2_000_000_000, 1, 2), "int32", {}, None),
    ],
)
def test_any_whole_numbers_come_back_as_they_are(tmp_path, values, dtype, options, outside):
    classes = patches(values=values, dtype=dtype)
    raster = save(tmp_path / "foreign.tif", classes, **options)

    table = drawn(raster, tmp_path)

    assert set(table.class_id) == set(values) - {outside}
    assert np.array_equal(
        burnt(table, classes.shape, -(2**40) if outside is None else outside), np.where(classes == outside, outside, classes)
    )
    assert set(table.class_name) == {f"class_{v}" if v >= 0 else f"class_minus_{-v}" for v in set(values) - {outside}}


def test_zero_is_a_class_where_nothing_says_otherwise(tmp_path):
    raster = save(tmp_path / "foreign.tif", patches())

    assert 0 in set(drawn(raster, tmp_path).class_id)
    assert any("--nodata 0" in warning for warning in ClassRaster.describe(raster).warnings)
    assert set(drawn(raster, tmp_path, nodata=0).class_id) == {1, 2, 3}
    assert set(drawn(raster, tmp_path, legend="isprs").class_id) == {1, 2, 3}


def test_a_chosen_nodata_replaces_that_of_the_file(tmp_path):
    raster = save(tmp_path / "foreign.tif", patches(), nodata=3)

    assert set(drawn(raster, tmp_path, nodata=2).class_id) == {0, 1, 3}


@pytest.mark.parametrize("kind", ["mask", "alpha"])
def test_mask_and_alpha_are_outside(tmp_path, kind):
    classes, valid = patches(values=(1, 2, 3)), patches(values=(0, 1)) > 0
    if kind == "mask":
        raster = save(tmp_path / "foreign.tif", classes, mask=valid)
    else:
        raster = save(tmp_path / "foreign.tif", np.stack([classes, 255 * valid.astype(np.uint8)]), alpha=True)

    assert np.array_equal(burnt(drawn(raster, tmp_path), classes.shape, 0), classes * valid)


def test_255_classes_are_drawn_and_256_refused(tmp_path):
    classes = np.arange(256, dtype=np.uint8).reshape(16, 16)

    table = drawn(save(tmp_path / "most.tif", classes, nodata=77), tmp_path)

    assert sorted(table.class_id) == [i for i in range(256) if i != 77]
    for name, values in (("bytes", classes), ("large", np.arange(5000, dtype=np.int32).reshape(50, 100))):
        with pytest.raises(SceneError, match="more than 255 different values"):
            drawn(save(tmp_path / f"{name}.tif", values), tmp_path)


def test_a_palette_gives_the_colours_and_nothing_else_does_spread_ones(tmp_path):
    palette = {0: (9, 9, 9), 1: (10, 20, 30), 2: (200, 100, 0), 3: (0, 0, 0)}
    coloured = ClassRaster.describe(save(tmp_path / "palette.tif", patches(), palette=palette)).legend
    plain = ClassRaster.describe(save(tmp_path / "plain.tif", np.arange(1, 13, dtype=np.uint8).reshape(3, 4), nodata=0)).legend

    assert [(c.title, c.rgb) for c in coloured.classes] == [(f"Class {value}", rgb) for value, rgb in palette.items()]
    colours = np.array([c.rgb for c in plain.classes], int)
    apart = np.abs(colours[:, None] - colours).sum(axis=-1) + 999 * np.eye(12, dtype=int)
    assert apart.min() > 40


def test_category_names_are_read_where_sidecars_are_trusted(tmp_path):
    raster = save(tmp_path / "foreign.tif", patches(), nodata=0)
    Path(f"{raster}.aux.xml").write_text(CATEGORIES)

    names = {
        trusted: [c.name for c in ClassRaster.describe(raster, policy=Policy(sidecars=trusted)).legend.classes] for trusted in (False, True)
    }

    assert names == {False: ["class_1", "class_2", "class_3"], True: ["water_body", "class_2nd_growth", "class_3"]}


def test_an_attribute_table_names_and_colours_classes(tmp_path):
    raster = save(tmp_path / "foreign.tif", patches(), nodata=0)
    Path(f"{raster}.aux.xml").write_text(TABLE, encoding="utf-8")

    found = ClassRaster.describe(raster, policy=Policy(sidecars=True)).legend.classes

    assert [(c.name, c.title, c.rgb) for c in found[:2]] == [("eau_e", "Eau é", (1, 2, 1)), ("class_eau_e", "Eau é", (1, 2, 2))]


@pytest.mark.parametrize("text", ["<PAMDataset", "<!DOCTYPE x [<!ENTITY a 'b'>]><PAMDataset/>", ""])
def test_a_side_file_that_is_not_understood_is_refused(raster, tmp_path, text):
    Path(f"{raster}.aux.xml").write_text(text)

    with pytest.raises(SceneError, match=r"aux\.xml: .*--legend"):
        vectorize(raster, tmp_path / "out.gpkg")
    assert vectorize(raster, tmp_path / "out.gpkg", legend="isprs")["polygons"]


def test_a_legend_file_names_the_classes(tmp_path):
    legend = tmp_path / "mine.yaml"
    legend.write_text(
        "name: mine\nclasses:\n" + "".join(f'  - {{id: {i}, name: n{i}, title: N{i}, colour: "#00000{i}"}}\n' for i in (1, 2, 3, 9))
    )
    raster = save(tmp_path / "foreign.tif", patches())

    facts = vectorize(raster, tmp_path / "out.gpkg", legend=legend)

    assert list(facts["classes"]) == ["n1", "n2", "n3", "n9"]
    with pytest.raises(OptionsError, match="holds the value 8, legend 'mine' has 1, 2, 3, 9"):
        vectorize(save(tmp_path / "b.tif", patches(values=(8, 9))), tmp_path / "b.gpkg", legend=legend)
    with pytest.raises(OptionsError, match="no such legend"):
        vectorize(raster, tmp_path / "b.gpkg", legend="nothing")


def test_one_band_of_several_is_chosen(tmp_path):
    stack = np.stack([patches(values=(1, 2)), patches(values=(3, 4)), patches(values=(5, 6))])
    raster = save(tmp_path / "foreign.tif", stack)

    assert set(drawn(raster, tmp_path, band=2).class_id) == {3, 4}
    with pytest.raises(BandsError, match="has 3 bands, expected one band of classes; say which with --band"):
        drawn(raster, tmp_path)
    with pytest.raises(BandsError, match="bands 1 to 3, band 4"):
        drawn(raster, tmp_path, band=4)


def test_confidence_is_averaged_over_each_polygon(raster, tmp_path):
    grid, values = GeoBox((40, 50), PLACE, "EPSG:32645"), np.random.default_rng(4).integers(0, 256, (40, 50)).astype(np.uint8)
    write_scalar_cog([(Window.of(values.shape), values)], tmp_path / "bytes.tif", grid, ["confidence"], {})
    floats = np.where(values == 255, np.nan, values / 254).astype(np.float32)
    save(tmp_path / "floats.tif", floats)
    known = np.ma.masked_equal(values, 255) / 254

    for name in ("bytes.tif", "floats.tif"):
        table = drawn(raster, tmp_path, confidence=tmp_path / name)
        expected = [known[burnt(table[i : i + 1].assign(class_id=1), known.shape, 0) == 1].mean() for i in range(len(table))]
        assert table.confidence.to_numpy() == pytest.approx(np.array(expected), rel=1e-5)


def test_zonal_means_become_attributes(raster, tmp_path):
    photo = np.random.default_rng(5).integers(1, 255, (3, 40, 50)).astype(np.uint8)
    photo[:, :7] = 0
    save(tmp_path / "photo.tif", photo, nodata=0, photometric="RGB")
    save(tmp_path / "heights.tif", photo[:2].astype(np.float32))

    named, plain = (drawn(raster, tmp_path, zonal=tmp_path / f"{name}.tif") for name in ("photo", "heights"))

    assert [c for c in named.columns if c.startswith("zonal")] == ["zonal_red", "zonal_green", "zonal_blue"]
    assert [c for c in plain.columns if c.startswith("zonal")] == ["zonal_1", "zonal_2"]
    for i in range(len(named)):
        mine = (burnt(named[i : i + 1].assign(class_id=1), (40, 50), 0) == 1) & photo.any(axis=0)
        assert named.zonal_green[i] == pytest.approx(photo[1][mine].mean() if mine.any() else np.nan, nan_ok=True)


@pytest.mark.parametrize("what", ["confidence", "zonal"])
def test_a_raster_on_another_grid_is_refused(raster, tmp_path, what):
    small, here = np.zeros((1, 39, 50), np.uint8), np.zeros((1, 40, 50), np.uint8)
    others = {
        "39 x 50 pixels, not 40 x 50": save(tmp_path / "small.tif", small),
        "the CRS WGS 84 / UTM zone 44N, not WGS 84 / UTM zone 45N": save(tmp_path / "zone.tif", here, crs="EPSG:32644"),
        "another place, 0.5 pixels away": save(tmp_path / "shifted.tif", here, transform=PLACE * Affine.translation(0.5, 0)),
    }
    for seen, other in others.items():
        with pytest.raises(SceneError, match=f"{seen}.*gdalwarp"):
            vectorize(raster, tmp_path / "out.gpkg", **{what: other})


@pytest.mark.parametrize(("dtype", "value"), [("float32", 1.5), ("float32", -0.1), ("int16", 1)])
def test_what_is_no_confidence_is_refused(raster, tmp_path, dtype, value):
    other = save(tmp_path / "other.tif", np.full((1, 40, 50), value, dtype))

    with pytest.raises(SceneError, match=r"expected confidence: floats from 0 to 1, or bytes"):
        vectorize(raster, tmp_path / "out.gpkg", confidence=other)


def test_floats_and_other_files_are_refused(tmp_path):
    with pytest.raises(SceneError, match=r"float32, expected whole numbers.*gdal_translate -ot"):
        drawn(save(tmp_path / "floats.tif", patches(dtype="float32")), tmp_path)
    (tmp_path / "text.tif").write_text("no raster")
    with pytest.raises(SceneError, match="is not a TIFF"):
        drawn(tmp_path / "text.tif", tmp_path)
    with pytest.raises(SceneError, match="no such file"):
        drawn(tmp_path / "missing.tif", tmp_path)
    with pytest.raises(SceneError, match="holds no class"):
        drawn(save(tmp_path / "empty.tif", np.zeros((4, 4), np.uint8), nodata=0), tmp_path)


@pytest.mark.parametrize("nodata", [-1, 256, 1.5, float("nan")])
def test_a_nodata_that_cannot_occur_is_refused(raster, tmp_path, nodata):
    with pytest.raises(OptionsError, match="its pixels are uint8, which cannot be"):
        vectorize(raster, tmp_path / "out.gpkg", nodata=nodata)


def test_outputs_in_the_way_are_kept_unless_forced(raster, tmp_path):
    out = tmp_path / "out.fgb"
    out.write_text("mine")

    with pytest.raises(OutputError, match="exists already; use --force"):
        vectorize(raster, out)
    assert out.read_text() == "mine"
    vectorize(raster, out, force=True)
    assert len(table_of(out, "fgb"))
    with pytest.raises(OutputError, match=r"the folder .*missing is missing"):
        vectorize(raster, tmp_path / "missing" / "out.gpkg")
    (tmp_path / "taken.gpkg").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        vectorize(raster, tmp_path / "taken.gpkg", force=True)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("room", [100, 40_000])
def test_a_full_disk_leaves_what_was_there(tmp_path, kind, room):
    raster, out = save(tmp_path / "noise.tif", np.random.default_rng(1).integers(1, 9, (120, 120)).astype(np.uint8)), tmp_path / "out"
    out = out.with_suffix(FORMATS[kind][0])
    out.write_text("mine")
    before = sorted(tmp_path.iterdir())
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            vectorize(raster, out, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert out.read_text() == "mine"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", ["geojsonl", "pmtiles"])
def test_formats_of_the_globe_need_a_crs(tmp_path, kind):
    raster = save(tmp_path / "nowhere.tif", patches(), crs=None)

    with pytest.raises(GeoreferenceError, match="the raster has no CRS"):
        vectorize(raster, tmp_path / f"out{FORMATS[kind][0]}")


@pytest.mark.parametrize("kind", ["gpkg", "parquet", "fgb"])
def test_other_formats_do_not(tmp_path, kind):
    raster = save(tmp_path / "nowhere.tif", patches(), crs=None)

    vectorize(raster, tmp_path / f"out{FORMATS[kind][0]}", single_layer=True)

    table = table_of(tmp_path / f"out{FORMATS[kind][0]}", kind)
    assert table.area_m2.to_numpy() == pytest.approx(table.area.to_numpy())
    assert kind != "parquet" or table.crs is None


def test_a_name_says_the_format():
    assert {format_of(f"a{suffix}") for suffixes in FORMATS.values() for suffix in suffixes} == set(FORMATS)
    assert format_of("a.json", "geojsonl") == "geojsonl"
    for path, chosen, message in [
        ("a.shp", None, r"\.shp names no format"),
        ("a", None, "no suffix names no format"),
        ("a.fgb", "gpkg", "no name for the format gpkg; end it in .gpkg"),
        ("a.db", "gpkg", "no name for the format gpkg"),
        ("a.fgb", "shp", "'shp' is unknown"),
    ]:
        with pytest.raises(OptionsError, match=message):
            format_of(path, chosen)


def test_shaped_polygons_are_measured_as_they_are_drawn(raster, tmp_path):
    table = drawn(raster, tmp_path, shaping=Shaping(min_area_m2=0.5, simplify_m=0.3))

    assert shapely.coverage_is_valid(shapely.get_parts(table.geometry.to_numpy()))
    assert table.area_m2.to_numpy() == pytest.approx(table.area.to_numpy(), rel=1e-3)
    assert table.perimeter_m.to_numpy() == pytest.approx(table.length.to_numpy(), rel=1e-3)
    assert table.area.sum() == pytest.approx((patches() > 0).sum() * 0.01)
    stated = pyogrio.read_info(tmp_path / "drawn.gpkg", layer="polygons")["dataset_metadata"]
    assert stated["SHAPING"] == "min_area_m2=0.5, simplify_m=0.3"


def test_the_command_says_what_it_did(raster, tmp_path):
    done = geoseg("vectorize", raster, "--out", tmp_path / "a.gpkg", "--min-area-m2", "building=1,car=2", "--min-area-m2", "tree=3")

    assert done.returncode == 0, done.stderr
    assert any(line.split()[0] == "building" and line.endswith("polygons") for line in done.stdout.splitlines())
    assert f"polygons to {tmp_path / 'a.gpkg'} in" in done.stdout
    as_json = geoseg("vectorize", raster, "--out", tmp_path / "a.fgb", "--json")
    assert json.loads(as_json.stdout)["classes"]["building"]["polygons"] > 0
    quiet = geoseg("vectorize", raster, "--out", tmp_path / "b.fgb", "--quiet")
    assert (quiet.stdout, quiet.stderr) == ("", "")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--min-area-m2", "much"], "neither an area nor a list"),
        (["--min-area-m2", "4,building=3"], "give one area, or NAME=AREA"),
        (["--min-area-m2", "bulding=3"], "class 'bulding' is not in the legend"),
        (["--min-area-m2", "-1"], "must be 0 or more"),
        (["--regularize", "hut"], "class 'hut' is not in the legend"),
        (["--connectivity", "6"], "neither 4 nor 8"),
        (["--format", "fgb"], "no name for the format fgb"),
    ],
)
def test_options_that_cannot_be_are_refused(raster, tmp_path, words, message):
    done = geoseg("vectorize", raster, "--out", tmp_path / "a.gpkg", *words)

    assert done.returncode == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "a.gpkg").exists()


def test_a_warning_goes_to_the_errors(tmp_path):
    raster = save(tmp_path / "foreign.tif", patches())

    done = geoseg("vectorize", raster, "--out", tmp_path / "a.gpkg")

    assert "geoseg: warning: it states no nodata value" in done.stderr
    with rasterio.open(raster) as file:
        assert file.colorinterp == (ColorInterp.gray,)
