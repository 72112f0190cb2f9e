"""SpaceNet's building rounds (1, 2, 4, 6, 7 and 8) as they are published."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from geoseg.datasets.labelled import LabelledSet, allowed_by, number_sets
from geoseg.datasets.scenes import LabelledScene, Labels, Layer
from geoseg.datasets.vectors import FootprintTable, Parts, TableLabels, VectorLabels
from geoseg.errors import BandsError, OptionsError
from geoseg.legend import Legend

_log = logging.getLogger(__name__)
_RGB = ("red", "green", "blue")
_RGBN = (*_RGB, "nir")
_WORLDVIEW = ("coastal", "blue", "green", "yellow", "red", "rededge", "nir", "nir2")
_BUILDING = "building"
_BORDER, _CONTACT = "border", "contact"


@dataclass(frozen=True, slots=True)
class _Round:
    """How one round names its files.

    Attributes:
        name: of the round.
        image: pattern of image names; group ``product``, and what identifies the image: all other groups, joined.
        label: pattern of GeoJSON names with the same groups but ``product``; a group the image has more of is not compared.
        products: bands of each product that can be used, in the order of the file; the sharpest first.
        folders: for images that are named alike in several folders: product of each folder.
        labels: folder of the labels, where other folders hold files named alike.
        beside: whether images and labels are compared only below one folder.
        example: an image and its label, for the refusal.
    """

    name: str
    image: str
    label: str
    products: Mapping[str, tuple[str, ...]]
    example: str
    folders: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    beside: bool = False


_AOI = r"(?P<aoi>AOI_\d+_[A-Za-z]+)"
_SHARP = {"PS-RGB": _RGB, "PS-RGBNIR": _RGBN, "PS-MS": _WORLDVIEW}
_ROUNDS = (
    _Round(
        "SpaceNet 1",
        r"(?P<product>3band|8band)_(?P<aoi>AOI_1_RIO)_(?P<key>img\d+)\.tif",
        r"Geo_(?P<aoi>AOI_1_RIO)_(?P<key>img\d+)\.geojson",
        {"3band": _RGB, "8band": _WORLDVIEW},
        "3band/3band_AOI_1_RIO_img1.tif with geojson/Geo_AOI_1_RIO_img1.geojson",
    ),
    _Round(
        "SpaceNet 2",
        rf"(?P<product>RGB-PanSharpen|MUL-PanSharpen)_{_AOI}_(?P<key>img\d+)\.tif",
        rf"buildings_{_AOI}_(?P<key>img\d+)\.geojson",
        {"RGB-PanSharpen": _RGB, "MUL-PanSharpen": _WORLDVIEW},
        "RGB-PanSharpen/RGB-PanSharpen_AOI_2_Vegas_img1.tif with geojson/buildings/buildings_AOI_2_Vegas_img1.geojson",
    ),
    _Round(
        "SpaceNet 2 or 4",
        rf"SN[24]_buildings_train_{_AOI}(?:_nadir\d+_catid_[0-9A-F]+)?_(?P<product>PS-RGB|PS-RGBNIR|PS-MS)_(?P<key>img\d+|\d+_\d+)\.tif",
        rf"SN[24]_buildings_train_{_AOI}_geojson_buildings_(?P<key>img\d+|\d+_\d+)\.geojson",
        _SHARP,
        "PS-RGB/SN2_buildings_train_AOI_2_Vegas_PS-RGB_img1.tif with "
        "geojson_buildings/SN2_buildings_train_AOI_2_Vegas_geojson_buildings_img1.geojson",
    ),
    _Round(
        "SpaceNet 4",
        r"(?P<product>Pan-Sharpen)_Atlanta_nadir\d+_catid_[0-9A-F]+_(?P<key>\d+_\d+)\.tif",
        r"spacenet-buildings_(?P<key>\d+_\d+)\.geojson",
        {"Pan-Sharpen": _RGBN},
        "Atlanta_nadir7_catid_1030010003D22F00/Pan-Sharpen/Pan-Sharpen_Atlanta_nadir7_catid_1030010003D22F00_732701_3730989.tif with "
        "geojson/spacenet-buildings/spacenet-buildings_732701_3730989.geojson",
    ),
    _Round(
        "SpaceNet 6",
        rf"SN6_Train_{_AOI}_(?P<product>PS-RGB|PS-RGBNIR)_(?P<key>\d+_\d+_tile_\d+)\.tif",
        rf"SN6_Train_{_AOI}_Buildings_(?P<key>\d+_\d+_tile_\d+)\.geojson",
        _SHARP,
        "PS-RGB/SN6_Train_AOI_11_Rotterdam_PS-RGB_20190822070610_20190822070846_tile_3721.tif with "
        "geojson_buildings/SN6_Train_AOI_11_Rotterdam_Buildings_20190822070610_20190822070846_tile_3721.geojson",
    ),
    _Round(
        "SpaceNet 7",
        r"(?P<key>global_monthly_\d{4}_\d{2}_mosaic_[\w-]+)\.tif",
        r"(?P<key>global_monthly_\d{4}_\d{2}_mosaic_[\w-]+)_Buildings\.geojson",
        {"images_masked": _RGB, "images": _RGB},
        "L15-0331E-1257N_1327_3160_13/images_masked/global_monthly_2018_01_mosaic_L15-0331E-1257N_1327_3160_13.tif with "
        "labels_match/global_monthly_2018_01_mosaic_L15-0331E-1257N_1327_3160_13_Buildings.geojson",
        folders={"images_masked": "images_masked", "images": "images"},
        labels=("labels_match", "labels"),
        beside=True,
    ),
    _Round(
        "SpaceNet 8",
        r"[0-9A-F]{12,}_(?P<key>\d+_\d+_\d+)\.tif",
        r"(?P<key>\d+_\d+_\d+)\.geojson",
        {"PRE-event": _RGB},
        "PRE-event/10500500C4DD7000_0_15_63.tif with annotations/0_15_63.geojson",
        folders={"PRE-event": "PRE-event"},
        labels=("annotations",),
        beside=True,
    ),
)


def spacenet(
    root: Path,
    legend: Legend,
    bands: tuple[str, ...],
    *,
    touched: bool = False,
    border_m: float = 0.0,
    contact_m: float = 0.0,
) -> LabelledSet:
    """The images of one or more areas of a round with the buildings on them.

    Buildings come from the GeoJSON of an image, in any CRS; where there is none, from a summary table (CSV with ``PolygonWKT_Pix``) in
    the same folder. All else is "no building": the one other class of the legend (see ``configs/legends/buildings.yaml``), or any
    of them. Of several products with the bands, the one with the fewest bands is taken. Images are named as their files, without
    the name of the product.

    Args:
        root: folder that holds images and labels, at any depth.
        legend: with a class ``building``.
        bands: of the model: red, green, blue, with nir where there is a fourth band, or WorldView's eight, coastal, blue, green,
            yellow, red, rededge, nir, nir2.
        touched: a pixel is building if a footprint touches it, instead of if its centre lies in one.
        border_m: width in metres of the rim inside each footprint that is of class ``border``; 0 for none (see
            ``configs/legends/building_parts.yaml`` and `geoseg.datasets.vectors.Parts`).
        contact_m: what lies between footprints that are nearer than this, in metres, is of class ``contact``; 0 for none.

    Returns:
        The set with the part ``train``: all images with labels, for SpaceNet publishes no others.

    Raises:
        OptionsError: if the folder is another one, no image has labels, or the legend lacks a class.
        BandsError: if no image has these bands.
    """
    paths = sorted(root.rglob("*.*"))
    published, images = _round(root, paths)
    product = _product(root, published, images, bands)
    names = [_BUILDING, *([_BORDER] if border_m else []), *([_CONTACT] if contact_m else [])]
    codes, other, allowed = _codes(legend, names, root)
    parts = Parts(codes[_BORDER], border_m, codes.get(_CONTACT, 0), contact_m) if border_m else None
    labels = _Footprints(published, paths, product, codes[_BUILDING], other, touched, parts)
    indexes = tuple(published.products[product].index(band) + 1 for band in bands)
    scenes = {}
    for path in images[product]:
        found = labels.of(path)
        if found is not None:
            name = _name(path, product)
            scenes[name] = LabelledScene(name, (Layer(path, bands, indexes),), found)
    count = len(images[product])
    if not scenes:
        raise OptionsError(
            f"{root}: none of its {count} images of {published.name} has labels; expected {published.example}, or a summary table"
        )
    if len(scenes) < count:
        _log.warning("%s: %d of %d images have labels, the others are left out", root, len(scenes), count)
    title = f"{published.name}, buildings ({product})"
    cite = "SpaceNet; Van Etten et al. 2018, arXiv:1807.01232; images: Maxar (SpaceNet 7: Planet)"
    return LabelledSet(root.name, title, "CC BY-SA 4.0", cite, allowed, {"train": tuple(scenes)}, scenes)


class _Footprints:
    """Finds the labels of images."""

    def __init__(
        self, published: _Round, paths: list[Path], product: str, building: int, other: int, touched: bool, parts: Parts | None
    ) -> None:
        self.round, self.product = published, product
        self.building, self.other, self.touched, self.parts = building, other, touched, parts
        self.files: dict[tuple[str, ...], Path] = {}
        ranks = {folder: rank for rank, folder in enumerate(published.labels)}
        for path in sorted(paths, key=lambda path: ranks.get(path.parent.name, 0)):
            found = re.fullmatch(published.label, path.name)
            if found and (not ranks or path.parent.name in ranks):
                self.files.setdefault(_key(published, path, found), path)
        self.tables = [FootprintTable(path) for path in paths if path.suffix == ".csv" and _is_summary(path, product)]

    def of(self, image: Path) -> Labels | None:
        """The labels of an image, if there are any."""
        found = re.fullmatch(self.round.image, image.name)
        assert found is not None
        path = self.files.get(_key(self.round, image, found))
        if path is not None:
            return VectorLabels(path, self.other, {None: self.building}, touched=self.touched, lenient=True, parts=self.parts)
        names = (_name(image, self.product), "_".join(_groups(found)), found["key"])
        table = next((table for table in self.tables if any(name in table.rows for name in names)), None)
        return None if table is None else TableLabels(table, names, self.building, self.other, self.touched, self.parts)


def _round(root: Path, paths: list[Path]) -> tuple[_Round, dict[str, list[Path]]]:
    """The first round of which there are images, and these by product."""
    for published in _ROUNDS:
        images: dict[str, list[Path]] = {}
        for path in paths:
            found = re.fullmatch(published.image, path.name)
            product = published.folders.get(path.parent.name) if published.folders else found and found["product"]
            if found and product:
                images.setdefault(product, []).append(path)
        if images:
            return published, images
    known = "; ".join(f"{each.name}: {each.example}" for each in _ROUNDS)
    seen = ", ".join(str(path.relative_to(root)) for path in paths[:5]) or "nothing"
    raise OptionsError(f"{root}: has no image of a building round of SpaceNet; seen: {seen}; expected one of {known}")


def _product(root: Path, published: _Round, images: Mapping[str, list[Path]], bands: tuple[str, ...]) -> str:
    able = [name for name, own in published.products.items() if name in images and set(bands) <= set(own)]
    if not able:
        offered = "; ".join(f"{name} with {', '.join(own)}" for name, own in published.products.items() if name in images)
        raise BandsError(f"{root}: no image of {published.name} here has the bands {', '.join(bands)}; there is {offered}")
    return min(able, key=lambda name: len(published.products[name]))


def _groups(found: re.Match[str]) -> list[str]:
    return [value for name, value in found.groupdict().items() if name != "product"]


def _key(published: _Round, path: Path, found: re.Match[str]) -> tuple[str, ...]:
    return (str(path.parent.parent) if published.beside else "", *_groups(found))


def _name(path: Path, product: str) -> str:
    """The image's name without its product, as summary tables have it."""
    return path.stem.removeprefix(f"{product}_").replace(f"_{product}_", "_")


def _is_summary(path: Path, product: str) -> bool:
    """Whether a table holds footprints in the pixels of the product: SpaceNet 1 has one table for each."""
    other = {"3band": "8band", "8band": "3band"}.get(product, "none")
    return (
        bool(re.search(r"Building_Solutions|_Buildings$|polygons_solution|ground_truth_pix|_catid_\w+_Train$", path.stem))
        and other not in path.stem
    )


def _codes(legend: Legend, names: list[str], root: Path) -> tuple[dict[str, int], int, npt.NDArray[np.bool_]]:
    """Codes of the named classes, of all else, and what the codes allow."""
    known = [c.name for c in legend.classes]
    for name in names:
        if name not in known:
            raise OptionsError(
                f"{root}: legend {legend.name!r} has no class {name!r}, which is what is labelled; it has {', '.join(known)}"
            )
    others = tuple(name for name in known if name not in names)
    numbers = number_sets([*((name,) for name in names), others], legend, root)
    table = {number: {"allowed": list(classes)} for classes, number in numbers.items() if number}
    return {name: numbers[frozenset([name])] for name in names}, numbers[frozenset(others)], allowed_by(table, legend, root)
