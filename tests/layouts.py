"""Small trees in the published naming of data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from PIL import Image
from pyproj import Transformer

from geoseg.legend import ISPRS
from tests.conftest import make_scene

COLOURS = {0: (0, 0, 0), **{c.id: c.rgb for c in ISPRS.classes}}
UTM = "EPSG:32611"
VEGAS = Affine(0.3, 0, 664_000, 0, -0.3, 4_005_000)
POTSDAM = Affine(0.05, 0, 366_676.8, 0, -0.05, 5_808_265.7)


def quilt(seed: int, size: int = 96, patch: int = 12) -> np.ndarray:
    """Class ids (size, size) of ISPRS in square patches."""
    ids = np.random.default_rng(seed).integers(1, 7, (size // patch, size // patch))
    return np.kron(ids, np.ones((patch, patch))).astype(np.uint8)


def coloured(labels: np.ndarray) -> np.ndarray:
    """(3, H, W) picture of class ids, as ISPRS publishes them."""
    return np.array([COLOURS[i] for i in range(7)], np.uint8)[labels].transpose(2, 0, 1)


def seen(labels: np.ndarray, bands: int = 3) -> np.ndarray:
    """(B, H, W) image in which each class has its own grey."""
    return np.stack([labels * 30 + 10 * band for band in range(bands)]).astype(np.uint8)


def _put(path: Path, pixels: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    make_scene(path, pixels, **options)


def potsdam(root: Path, tiles: tuple[str, ...] = ("2_10", "7_8", "2_13"), *, size: int = 96, heights: bool = True) -> Path:
    """``2_Ortho_RGB``, ``3_Ortho_IRRG``, ``5_Labels_all``, ``5_Labels_all_noBoundary`` and ``1_DSM_normalisation`` of some tiles."""
    for seed, tile in enumerate(tiles):
        labels = quilt(seed, size)
        row, col = tile.split("_")
        pixels, place = seen(labels), {"crs": "EPSG:32633", "transform": POTSDAM}
        _put(root / "2_Ortho_RGB" / f"top_potsdam_{tile}_RGB.tif", pixels, **place)
        _put(root / "3_Ortho_IRRG" / f"top_potsdam_{tile}_IRRG.tif", pixels[::-1] + 1, **place)
        nowhere = {"crs": None, "transform": Affine.identity()}
        _put(root / "5_Labels_all" / f"top_potsdam_{tile}_label.tif", coloured(labels), **nowhere)
        boundary = labels.copy()
        boundary[::12] = 0
        _put(root / "5_Labels_all_noBoundary" / f"top_potsdam_{tile}_label_noBoundary.tif", coloured(boundary), **nowhere)
        if heights:
            folder = root / "1_DSM_normalisation"
            folder.mkdir(exist_ok=True)
            grey = np.full((size, size), 7, np.uint8) if seed else np.full((size, size - 1), 7, np.uint8)
            Image.fromarray(grey).save(folder / f"dsm_potsdam_{int(row):02}_{int(col):02}_normalized_lastools.jpg", quality=95)
    return root


def vaihingen(root: Path, areas: tuple[int, ...] = (1, 3, 2), *, complete: bool = True) -> Path:
    """``top``, ``gts_for_participants`` of the training areas, the complete references, and ``ndsm``."""
    full = "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE" if complete else "gts_for_participants"
    eroded = "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE" if complete else "gts_eroded_for_participants"
    for area in areas:
        labels = quilt(area)
        name = f"top_mosaic_09cm_area{area}"
        nowhere = {"crs": None, "transform": Affine.identity()}
        _put(root / "top" / f"{name}.tif", seen(labels), **nowhere)
        _put(root / full / f"{name}.tif", coloured(labels), **nowhere)
        _put(root / eroded / f"{name}_noBoundary.tif", coloured(np.where(np.arange(96) % 12, labels, 0)), **nowhere)
        (root / "ndsm").mkdir(exist_ok=True)
        Image.fromarray(labels).save(root / "ndsm" / f"ndsm_09cm_matching_area{area}.bmp")
    return root


def covers(seed: int, numbers: range, size: int = 64) -> np.ndarray:
    """Numbers (size, size) of a land cover in square patches."""
    return np.kron(np.random.default_rng(seed).choice(numbers, (size // 8, size // 8)), np.ones((8, 8))).astype(np.uint8)


def loveda(root: Path) -> Path:
    """``Train`` and ``Val`` with two rural and urban pictures each, and one without label in ``Test``."""
    for part, first in (("Train", 0), ("Val", 2522), ("Test", 4191)):
        for place in ("Rural", "Urban"):
            for number in range(first, first + 2) if place == "Rural" else range(first + 1366, first + 1368):
                labels = covers(number, range(8))
                folder = root / part / place
                for kind in ("images_png", "masks_png")[: 1 if part == "Test" else 2]:
                    (folder / kind).mkdir(parents=True, exist_ok=True)
                    picture = labels if kind == "masks_png" else seen(labels).transpose(1, 2, 0)
                    Image.fromarray(picture).save(folder / kind / f"{number}.png")
    return root


def landcoverai(root: Path) -> Path:
    """``images`` and ``masks`` of three orthophotos, one of 0.5 m, and the lists of tiles."""
    for seed, (name, pixel_m) in enumerate({"M-33-20-D-c-4-2": 0.25, "M-34-51-C-d-4-1": 0.5, "N-33-60-D-c-4-2": 0.25}.items()):
        labels = covers(seed, range(5))
        place = {"crs": "EPSG:2180", "transform": Affine(pixel_m, 0, 280_000, 0, -pixel_m, 540_000)}
        _put(root / "images" / f"{name}.tif", seen(labels), **place)
        _put(root / "masks" / f"{name}.tif", labels[None], **place)
    for part, number in (("train", 0), ("val", 1), ("test", 2)):
        (root / f"{part}.txt").write_text(f"M-33-20-D-c-4-2_{number}\nN-33-60-D-c-4-2_{number}\n")
    return root


def openearthmap(root: Path) -> Path:
    """Two regions, one without CRS, and the lists of images, of which one is not here."""
    folder = root / "OpenEarthMap_wo_xBD"
    for region in ("aachen", "al_qurnah"):
        for number in (1, 2, 3):
            labels = covers(number, range(9))
            place = {"crs": "EPSG:32632", "transform": Affine(0.3, 0, 290_000, 0, -0.3, 5_630_000)}
            place = place if region == "aachen" else {"crs": None, "transform": Affine.identity()}
            _put(folder / region / "images" / f"{region}_{number}.tif", seen(labels), **place)
            if number < 3:
                _put(folder / region / "labels" / f"{region}_{number}.tif", labels[None], **place)
    (folder / "train.txt").write_text("aachen_1.tif\nal_qurnah_1.tif\nsanta_rosa_1.tif\n")
    (folder / "val.txt").write_text("aachen_2.tif\nal_qurnah_2.tif\n")
    (folder / "test.txt").write_text("aachen_3.tif\nal_qurnah_3.tif\n")
    return root


def footprints(seed: int, size: int = 60) -> list[list[tuple[float, float]]]:
    """Outlines of three houses in pixel coordinates (x, y), no corner near the centre of a pixel."""
    rng = np.random.default_rng(seed)
    outlines = []
    for left, top in ((4, 5), (30, 8), (12, 35)):
        width, height = rng.integers(8, 20, 2)
        outlines.append([(left, top), (left + width, top), (left + width, top + height), (left, top + height), (left, top)])
    return outlines


def burnt(outlines: list[list[tuple[float, float]]], size: int = 60) -> np.ndarray:
    """(size, size) bool, where houses with whole-numbered corners are."""
    mask = np.zeros((size, size), bool)
    for (left, top), _, (right, bottom), *_ in outlines:
        mask[int(top) : int(bottom), int(left) : int(right)] = True
    return mask


def geojson(path: Path, outlines: list[list[tuple[float, float]]], *, transform: Affine = VEGAS, crs: str | None = "EPSG:4326") -> None:
    """Write outlines in another CRS than the image's (UTM zone 11), as GeoJSON with a height, which SpaceNet's have."""
    change = Transformer.from_crs(UTM, crs or UTM, always_xy=True)
    features = []
    for outline in outlines:
        ring = [[*change.transform(*(transform * point)), 0.0] for point in outline]
        features.append({"type": "Feature", "properties": {"building": "yes"}, "geometry": {"type": "Polygon", "coordinates": [ring]}})
    name = {"crs": {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{(crs or UTM).split(':')[1]}"}}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", **name, "features": features}))


def house_image(outlines: list[list[tuple[float, float]]], bands: int, dtype: str = "uint16", seed: int = 0, size: int = 60) -> np.ndarray:
    """(B, size, size) image in which houses are bright."""
    noise = np.random.default_rng(seed).integers(0, 100, (bands, size, size))
    return (noise + np.where(burnt(outlines, size), 900, 300) // (4 if dtype == "uint8" else 1)).astype(dtype)


_PAIRS = {
    "1": ("3band/3band_AOI_1_RIO_img{n}.tif", "geojson/Geo_AOI_1_RIO_img{n}.geojson", 3, "uint8"),
    "2": (
        "AOI_2_Vegas_Train/RGB-PanSharpen/RGB-PanSharpen_AOI_2_Vegas_img{n}.tif",
        "AOI_2_Vegas_Train/geojson/buildings/buildings_AOI_2_Vegas_img{n}.geojson",
        3,
        "uint16",
    ),
    "2 on S3": (
        "AOI_2_Vegas/PS-MS/SN2_buildings_train_AOI_2_Vegas_PS-MS_img{n}.tif",
        "AOI_2_Vegas/geojson_buildings/SN2_buildings_train_AOI_2_Vegas_geojson_buildings_img{n}.geojson",
        8,
        "uint16",
    ),
    "4": (
        "Atlanta_nadir7_catid_1030010003D22F00/Pan-Sharpen/Pan-Sharpen_Atlanta_nadir7_catid_1030010003D22F00_73270{n}_3730989.tif",
        "geojson/spacenet-buildings/spacenet-buildings_73270{n}_3730989.geojson",
        4,
        "uint16",
    ),
    "4 on S3": (
        "nadir7_catid_1030010003D22F00/PS-RGBNIR/SN4_buildings_train_AOI_6_Atlanta_nadir7_catid_1030010003D22F00_PS-RGBNIR_73270{n}_3730989.tif",
        "geojson_buildings/SN4_buildings_train_AOI_6_Atlanta_geojson_buildings_73270{n}_3730989.geojson",
        4,
        "uint16",
    ),
    "6": (
        "PS-RGB/SN6_Train_AOI_11_Rotterdam_PS-RGB_20190822070610_20190822070846_tile_{n}.tif",
        "geojson_buildings/SN6_Train_AOI_11_Rotterdam_Buildings_20190822070610_20190822070846_tile_{n}.geojson",
        3,
        "uint8",
    ),
    "7": (
        "L15-0331E-1257N_1327_3160_13/images_masked/global_monthly_2018_0{n}_mosaic_L15-0331E-1257N_1327_3160_13.tif",
        "L15-0331E-1257N_1327_3160_13/labels_match/global_monthly_2018_0{n}_mosaic_L15-0331E-1257N_1327_3160_13_Buildings.geojson",
        4,
        "uint8",
    ),
    "8": ("PRE-event/10500500C4DD7000_0_{n}_63.tif", "annotations/0_{n}_63.geojson", 3, "uint8"),
}


def spacenet(root: Path, which: str = "2", images: tuple[int, ...] = (1, 2, 3), *, labels: bool = True) -> Path:
    """Images and GeoJSON labels of a round; the second image has an empty file where there is no house."""
    image, label, bands, dtype = _PAIRS[which]
    for n in images:
        outlines = footprints(n) if n != 2 else []
        options: dict[str, Any] = {"colours": ("red", "green", "blue", "alpha"), "alpha": True} if which == "7" else {}
        pixels = house_image(outlines, bands, dtype, n)
        if which == "7":
            pixels[3] = 255
        _put(root / image.format(n=n), pixels, crs=UTM, transform=VEGAS, **options)
        if labels and n != 2:
            geojson(root / label.format(n=n), outlines)
        elif labels:
            (root / label.format(n=n)).parent.mkdir(parents=True, exist_ok=True)
            (root / label.format(n=n)).write_text("")
    return root


def summary(path: Path, ids: dict[str, list[list[tuple[float, float]]]]) -> Path:
    """A summary table of footprints in pixel coordinates."""
    rows = ["ImageId,BuildingId,PolygonWKT_Pix,PolygonWKT_Geo"]
    for name, outlines in ids.items():
        rows += [f'{name},{i},"POLYGON (({", ".join(f"{x} {y} 0" for x, y in ring)}))",' for i, ring in enumerate(outlines)]
        rows += [] if outlines else [f'{name},-1,"POLYGON EMPTY","POLYGON EMPTY"']
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")
    return path
