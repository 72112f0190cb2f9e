"""The ISPRS 2D semantic labelling contest as it is published: Potsdam and Vaihingen."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from geoseg.datasets.labelled import LabelledSet, allowed_by
from geoseg.datasets.rasters import ColourLabels
from geoseg.datasets.scenes import LabelledScene, Layer
from geoseg.errors import BandsError, OptionsError
from geoseg.legend import ISPRS, Legend

_log = logging.getLogger(__name__)
_HEIGHT = "ndsm"
_TERMS = "terms of the ISPRS benchmark, to be asked for there; the imagery is not open data"


@dataclass(frozen=True, slots=True)
class _Publication:
    """How a data set is published.

    Attributes:
        title: of the data set.
        attribution: whom to name.
        gsd_m: metres per pixel.
        products: kind of the image files and their bands, fewest bands first.
        split: tiles of each part, by name.
        kind: what a file is, by its folder and name: (tile, kind), or None for none of ours. Kinds are those of ``products``,
            ``label``, ``eroded`` and the kinds of ``heights``.
        heights: kinds of the normalised surface model, the better first.
        expected: folders and files, for the refusal.
    """

    title: str
    attribution: str
    gsd_m: float
    products: Mapping[str, tuple[str, ...]]
    split: Mapping[str, tuple[str, ...]]
    kind: Callable[[str, str], tuple[str, str] | None]
    heights: tuple[str, ...]
    expected: str


def potsdam(root: Path, legend: Legend, bands: tuple[str, ...], *, eroded: bool = False) -> LabelledSet:
    """The unpacked archives of Potsdam, in one folder.

    The bands decide which images are taken: red, green, blue are those of ``2_Ortho_RGB``, nir, red, green of ``3_Ortho_IRRG``, all
    four of ``4_Ortho_RGBIR``; ``ndsm`` as the last band adds ``1_DSM_normalisation``. Images are named ``top_potsdam_2_10``.

    Args:
        root: folder that holds them, at any depth.
        legend: with the six classes of the contest; without clutter, its pixels are unlabelled.
        bands: of the model.
        eroded: take the labels without the pixels at boundaries (``5_Labels_all_noBoundary``).

    Returns:
        The set with the official parts ``train`` (24 tiles) and ``test`` (14); what is not here is left out, as are test tiles
        without label.

    Raises:
        OptionsError: if the folder is another one, a training tile has no label, or the legend lacks a class.
        BandsError: if no image has these bands.
    """
    return _read(root, "potsdam", _POTSDAM, legend, bands, eroded=eroded)


def vaihingen(root: Path, legend: Legend, bands: tuple[str, ...], *, eroded: bool = False) -> LabelledSet:
    """The unpacked archives of Vaihingen, in one folder.

    The images in ``top`` have the bands nir, red, green; ``ndsm`` as the last band adds ``ndsm/ndsm_09cm_matching_area1.bmp``. Labels
    are in ``gts_for_participants`` or ``ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE``. Images are named
    ``top_mosaic_09cm_area1``.

    Args:
        root: folder that holds them, at any depth.
        legend: with the six classes of the contest; without clutter, its pixels are unlabelled.
        bands: of the model.
        eroded: take the labels without the pixels at boundaries (``gts_eroded_for_participants``, ``..._ground_truth_eroded_COMPLETE``).

    Returns:
        The set with the official parts ``train`` (16 tiles) and ``test`` (17), as for `potsdam`.

    Raises:
        OptionsError: if the folder is another one, a training tile has no label, or the legend lacks a class.
        BandsError: if no image has these bands.
    """
    return _read(root, "vaihingen", _VAIHINGEN, legend, bands, eroded=eroded)


def _read(root: Path, name: str, published: _Publication, legend: Legend, bands: tuple[str, ...], *, eroded: bool) -> LabelledSet:
    files = _index(root, published)
    product, indexes = _product(root, published, files, bands)
    label = "eroded" if eroded else "label"
    split: dict[str, tuple[str, ...]] = {}
    images = {}
    for part, tiles in published.split.items():
        here = [tile for tile in tiles if (tile, product) in files and (part == "train" or (tile, label) in files)]
        for tile in here:
            images[tile] = _scene(root, published, files, tile, bands, product, indexes, label)
        if here and len(here) < len(tiles):
            _log.warning("%s: %d of the %d tiles of part %s are here", root, len(here), len(tiles), part)
        split[part] = tuple(here)
    named = {c.name for c in legend.classes}
    codes = {c.id: {"allowed": [c.name] if c.name != "clutter" or c.name in named else []} for c in ISPRS.classes}
    return LabelledSet(name, published.title, _TERMS, published.attribution, allowed_by(codes, legend, root), split, images)


def _index(root: Path, published: _Publication) -> dict[tuple[str, str], Path]:
    """The files of ours by tile and kind."""
    files: dict[tuple[str, str], Path] = {}
    for path in sorted(root.rglob("*.*")):
        key = published.kind(path.parent.name, path.name)
        if key is not None:
            files.setdefault(key, path)
    return files


def _product(
    root: Path, published: _Publication, files: Mapping[tuple[str, str], Path], bands: tuple[str, ...]
) -> tuple[str, tuple[int, ...]]:
    """The kind of images that has the bands, and their numbers in it."""
    wanted = tuple(band for band in bands if band != _HEIGHT)
    if _HEIGHT in bands and bands[-1] != _HEIGHT:
        raise BandsError(
            f"{root}: {_HEIGHT} is band {bands.index(_HEIGHT) + 1} of {', '.join(bands)}; it comes from a file of its own, put it last"
        )
    able = [kind for kind, own in published.products.items() if set(wanted) <= set(own)]
    if not able:
        offered = "; ".join(", ".join(own) for own in published.products.values())
        raise BandsError(f"{root}: {published.title} has no image with the bands {', '.join(wanted)}; its images have {offered}")
    here = [kind for kind in able if any(found == kind for _, found in files)]
    if not here:
        seen = sorted(path.name for path in root.iterdir())
        listed = ", ".join(seen[:6]) + (", ..." if len(seen) > 6 else "") if seen else "nothing"
        raise OptionsError(
            f"{root}: has no image of {published.title} with the bands {', '.join(wanted)}; expected {published.expected}; seen: {listed}"
        )
    return here[0], tuple(published.products[here[0]].index(band) + 1 for band in wanted)


def _scene(
    root: Path,
    published: _Publication,
    files: Mapping[tuple[str, str], Path],
    tile: str,
    bands: tuple[str, ...],
    product: str,
    indexes: tuple[int, ...],
    label: str,
) -> LabelledScene:
    if (tile, label) not in files:
        raise OptionsError(f"{root}: {tile} has no {'eroded ' if label == 'eroded' else ''}label; expected {published.expected}")
    layers = [Layer(files[tile, product], bands[: len(indexes)], indexes)]
    if _HEIGHT in bands:
        kind = next((kind for kind in published.heights if (tile, kind) in files), None)
        if kind is None:
            raise OptionsError(f"{root}: {tile} has no normalised surface model; expected {published.expected}")
        layers.append(Layer(files[tile, kind], (_HEIGHT,), (1,)))
    return LabelledScene(tile, tuple(layers), ColourLabels(files[tile, label], ISPRS), published.gsd_m)


def _potsdam_kind(_: str, name: str) -> tuple[str, str] | None:
    found = re.fullmatch(r"(?:top|dsm)_potsdam_0?(\d+)_0?(\d+)_(\w+)\.(?:tif|jpg)", name)
    if found is None:
        return None
    row, col, kind = found.groups()
    return f"top_potsdam_{row}_{col}", {"label_noBoundary": "eroded"}.get(kind, kind)


def _vaihingen_kind(folder: str, name: str) -> tuple[str, str] | None:
    found = re.fullmatch(r"(top_mosaic|ndsm)_09cm_(?:matching_)?area(\d+)(_noBoundary)?\.(?:tif|bmp|jpg)", name)
    if found is None:
        return None
    what, number, eroded = found.groups()
    kind = "ndsm" if what == "ndsm" else "eroded" if eroded else "IRRG" if folder == "top" else "label"
    return f"top_mosaic_09cm_area{number}", kind


def _tiles(pattern: str, numbers: str) -> tuple[str, ...]:
    return tuple(pattern.format(number) for number in numbers.split())


_CITE = "Rottensteiner et al. 2012, doi 10.5194/isprsannals-I-3-293-2012"
_POTSDAM = _Publication(
    title="ISPRS Potsdam",
    attribution=f"ISPRS 2D semantic labelling contest, Potsdam; images: BSF Swissphoto; {_CITE}",
    gsd_m=0.05,
    products={"RGB": ("red", "green", "blue"), "IRRG": ("nir", "red", "green"), "RGBIR": ("red", "green", "blue", "nir")},
    split={
        "train": _tiles(
            "top_potsdam_{}",
            "2_10 2_11 2_12 3_10 3_11 3_12 4_10 4_11 4_12 5_10 5_11 5_12 6_7 6_8 6_9 6_10 6_11 6_12 7_7 7_8 7_9 7_10 7_11 7_12",
        ),
        "test": _tiles("top_potsdam_{}", "2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13"),
    },
    kind=_potsdam_kind,
    heights=("normalized_lastools", "normalized_ownapproach"),
    expected=(
        "2_Ortho_RGB/top_potsdam_2_10_RGB.tif (3_Ortho_IRRG/..._IRRG.tif, 4_Ortho_RGBIR/..._RGBIR.tif), "
        "5_Labels_all/top_potsdam_2_10_label.tif (or 5_Labels_for_participants), "
        "5_Labels_all_noBoundary/top_potsdam_2_10_label_noBoundary.tif, "
        "1_DSM_normalisation/dsm_potsdam_02_10_normalized_lastools.jpg for ndsm"
    ),
)
_VAIHINGEN = _Publication(
    title="ISPRS Vaihingen",
    attribution=f"ISPRS 2D semantic labelling contest, Vaihingen; images: DGPF (Cramer 2010); {_CITE}",
    gsd_m=0.09,
    products={"IRRG": ("nir", "red", "green")},
    split={
        "train": _tiles("top_mosaic_09cm_area{}", "1 3 5 7 11 13 15 17 21 23 26 28 30 32 34 37"),
        "test": _tiles("top_mosaic_09cm_area{}", "2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38"),
    },
    kind=_vaihingen_kind,
    heights=("ndsm",),
    expected=(
        "top/top_mosaic_09cm_area1.tif, gts_for_participants/top_mosaic_09cm_area1.tif (or the folder "
        "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE), gts_eroded_for_participants/top_mosaic_09cm_area1_noBoundary.tif, "
        "ndsm/ndsm_09cm_matching_area1.bmp for ndsm"
    ),
)
