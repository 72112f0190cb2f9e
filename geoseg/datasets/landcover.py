"""LoveDA, LandCover.ai and OpenEarthMap as they are published."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from geoseg.datasets.labelled import LabelledSet, allowed_by, number_sets
from geoseg.datasets.rasters import ClassLabels
from geoseg.datasets.scenes import LabelledScene, Layer
from geoseg.errors import BandsError, OptionsError
from geoseg.legend import Legend

_log = logging.getLogger(__name__)
_BANDS = ("red", "green", "blue")
_PAVED = ("impervious", "car")
_BARE = ("impervious", "low_vegetation", "clutter")
_NO_BUILDING = ("impervious", "low_vegetation", "tree", "car", "clutter")

Pairs = dict[str, tuple[str, Path, Path]]
"""Of each image, by name: its part, its file and its label."""


@dataclass(frozen=True, slots=True)
class _Publication:
    """How a data set is published.

    Attributes:
        title: of the data set.
        licence: of labels and images.
        attribution: whom to name.
        classes: of each number in the labels the class in the set's own legend, and what it may be in that of ISPRS.
        find: the images that have labels.
        expected: folders and files, for the refusal.
        gsd_m: metres per pixel of images that do not say it.
    """

    title: str
    licence: str
    attribution: str
    classes: Mapping[int, tuple[str, tuple[str, ...]]]
    find: Callable[[Path], Pairs]
    expected: str
    gsd_m: float


def loveda(root: Path, legend: Legend, bands: tuple[str, ...]) -> LabelledSet:
    """LoveDA: pictures of 1024 x 1024 pixels of 0.3 m, without a place on Earth.

    The labels are those of ``configs/legends/loveda.yaml``; for a legend with the classes of ISPRS, each stands for a set of those:
    background for all but building, road for impervious or car, water for clutter, barren for impervious, low vegetation or clutter,
    forest for tree, agriculture for low vegetation. Images are named ``urban_1366`` or ``rural_0``.

    Args:
        root: folder that holds ``Train`` and ``Val``, at any depth.
        legend: of the model.
        bands: of the model, of red, green, blue.

    Returns:
        The set with the official parts ``train`` and ``val``; the labels of ``Test`` are not published.

    Raises:
        OptionsError: if the folder is another one, or the legend lacks a class.
        BandsError: if the images do not have the bands.
    """
    return _read(root, "loveda", _LOVEDA, legend, bands)


def landcoverai(root: Path, legend: Legend, bands: tuple[str, ...]) -> LabelledSet:
    """LandCover.ai: orthophotos of 0.25 or 0.5 m.

    The labels are those of ``configs/legends/landcoverai.yaml``; for a legend with the classes of ISPRS, background stands for all but
    building, woodland for tree, water for clutter, road for impervious or car. Images are named as their files.

    The published ``train.txt``, ``val.txt`` and ``test.txt`` are not used: they share out tiles of 512 pixels at random, so that tiles of
    all three parts touch each other in the same orthophoto. Hold out orthophotos instead (``keep`` and ``drop`` of a source).
    Figures so measured are lower than those on the published tiles, and more honest.

    Args:
        root: folder that holds ``images`` and ``masks``, at any depth.
        legend: of the model.
        bands: of the model, of red, green, blue.

    Returns:
        The set with the part ``train``: all orthophotos.

    Raises:
        OptionsError: if the folder is another one, or the legend lacks a class.
        BandsError: if the images do not have the bands.
    """
    return _read(root, "landcoverai", _LANDCOVERAI, legend, bands)


def openearthmap(root: Path, legend: Legend, bands: tuple[str, ...]) -> LabelledSet:
    """OpenEarthMap: images of 0.25 to 0.5 m from regions all over the world; those of xBD have to be put into their folders before.

    The labels are those of ``configs/legends/openearthmap.yaml``; for a legend with the classes of ISPRS, bareland stands for impervious,
    low vegetation or clutter, rangeland and agriculture for low vegetation, developed space for impervious, car or clutter, road for
    impervious or car, water for clutter. Images are named as their files, ``aachen_1``; one that does not say how large its pixels are
    is taken for one of 0.35 m.

    Args:
        root: folder that holds ``train.txt``, ``val.txt`` and a folder for each region, at any depth.
        legend: of the model.
        bands: of the model, of red, green, blue.

    Returns:
        The set with the official parts ``train`` and ``val``; the labels of ``test`` are not published. What is not here is left out.

    Raises:
        OptionsError: if the folder is another one, or the legend lacks a class.
        BandsError: if the images do not have the bands.
    """
    return _read(root, "openearthmap", _OPENEARTHMAP, legend, bands)


def _read(root: Path, name: str, published: _Publication, legend: Legend, bands: tuple[str, ...]) -> LabelledSet:
    if not set(bands) <= set(_BANDS):
        raise BandsError(f"{root}: {published.title} has no image with the bands {', '.join(bands)}; its images have {', '.join(_BANDS)}")
    pairs = published.find(root)
    if not pairs:
        seen = sorted(path.name for path in root.iterdir())
        listed = ", ".join(seen[:6]) + (", ..." if len(seen) > 6 else "") if seen else "nothing"
        raise OptionsError(f"{root}: has no labelled image of {published.title}; expected {published.expected}; seen: {listed}")
    own = {c for c, _ in published.classes.values()} <= {c.name for c in legend.classes}
    sets = {number: (title,) if own else others for number, (title, others) in published.classes.items()}
    numbers = number_sets(sets.values(), legend, root)
    allowed = allowed_by({code: {"allowed": list(names)} for names, code in numbers.items()}, legend, root)
    codes = {number: numbers[frozenset(names)] for number, names in sets.items()}
    indexes = tuple(_BANDS.index(band) + 1 for band in bands)
    images: dict[str, LabelledScene] = {}
    split: dict[str, tuple[str, ...]] = {}
    for key, (part, image, label) in pairs.items():
        images[key] = LabelledScene(key, (Layer(image, bands, indexes),), ClassLabels(label, codes), else_m=published.gsd_m)
        split[part] = (*split.get(part, ()), key)
    return LabelledSet(name, published.title, published.licence, published.attribution, allowed, split, images)


def _find_loveda(root: Path) -> Pairs:
    pairs: Pairs = {}
    for image in sorted(root.rglob("images_png/*.png")):
        place, part = image.parents[1].name, image.parents[2].name
        label = image.parents[1] / "masks_png" / image.name
        if part in ("Train", "Val") and label.is_file():
            pairs[f"{place.lower()}_{image.stem}"] = part.lower(), image, label
    return pairs


def _find_landcoverai(root: Path) -> Pairs:
    pairs: Pairs = {}
    for image in sorted(root.rglob("images/*.tif")):
        label = image.parents[1] / "masks" / image.name
        if label.is_file():
            pairs[image.stem] = "train", image, label
    return pairs


def _find_openearthmap(root: Path) -> Pairs:
    here = {image.name: image for image in sorted(root.rglob("images/*.tif"))}
    pairs: Pairs = {}
    for part in ("train", "val"):
        listed = [line.strip() for path in sorted(root.rglob(f"{part}.txt")) for line in path.read_text(encoding="utf-8").splitlines()]
        names = [name for name in listed if name in here and _labels_of(here[name]).is_file()]
        pairs |= {Path(name).stem: (part, here[name], _labels_of(here[name])) for name in names}
        if names and len(names) < len(listed):
            _log.warning("%s: %d of the %d images of part %s are here", root, len(names), len(listed), part)
    return pairs


def _labels_of(image: Path) -> Path:
    return image.parents[1] / "labels" / image.name


_LOVEDA = _Publication(
    title="LoveDA",
    licence="CC BY-NC-SA 4.0",
    attribution="Wang et al. 2021, LoveDA, arXiv:2110.08733; images: Google Earth",
    classes={
        1: ("background", _NO_BUILDING),
        2: ("building", ("building",)),
        3: ("road", _PAVED),
        4: ("water", ("clutter",)),
        5: ("barren", _BARE),
        6: ("forest", ("tree",)),
        7: ("agriculture", ("low_vegetation",)),
    },
    find=_find_loveda,
    expected="Train/Urban/images_png/1366.png with Train/Urban/masks_png/1366.png, and the same in Train/Rural, Val/Urban, Val/Rural",
    gsd_m=0.3,
)
_LANDCOVERAI = _Publication(
    title="LandCover.ai",
    licence="CC BY-NC-SA 4.0",
    attribution="Boguszewski et al. 2021, LandCover.ai, arXiv:2005.02264; images: GUGiK",
    classes={
        0: ("background", _NO_BUILDING),
        1: ("building", ("building",)),
        2: ("woodland", ("tree",)),
        3: ("water", ("clutter",)),
        4: ("road", _PAVED),
    },
    find=_find_landcoverai,
    expected="images/M-33-20-D-c-4-2.tif with masks/M-33-20-D-c-4-2.tif",
    gsd_m=0.25,
)
_OPENEARTHMAP = _Publication(
    title="OpenEarthMap",
    licence="labels: CC BY-NC-SA 4.0; images: of each region its own",
    attribution="Xia et al. 2023, OpenEarthMap, arXiv:2210.10732",
    classes={
        1: ("bareland", _BARE),
        2: ("rangeland", ("low_vegetation",)),
        3: ("developed", (*_PAVED, "clutter")),
        4: ("road", _PAVED),
        5: ("tree", ("tree",)),
        6: ("water", ("clutter",)),
        7: ("agriculture", ("low_vegetation",)),
        8: ("building", ("building",)),
    },
    find=_find_openearthmap,
    expected="train.txt and val.txt with names of images, aachen/images/aachen_1.tif with aachen/labels/aachen_1.tif",
    gsd_m=0.35,
)
