"""Predictions, and the references they belong to."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from geoseg.errors import OptionsError
from geoseg.outlines import SUFFIXES
from geoseg.policy import printable

_PREDICTED = r"_classes$"
_LABELLED = r"(_classes|_labels?(_noBoundary)?|_noBoundary|_reference|_gt|_mask)$"


@dataclass(frozen=True, slots=True)
class Pair:
    """Files to compare.

    Attributes:
        name: of the scene.
        prediction: class raster or polygons.
        reference: what is true.
        confidence: raster of the prediction's confidence; None without.
    """

    name: str
    prediction: Path
    reference: Path
    confidence: Path | None = None


def pairs_of(prediction: Path, reference: Path | None, confidence: Path | None) -> list[Pair]:
    """The files to compare, of which there is at least one pair."""
    if reference is None:
        return _listed(prediction)
    if prediction.is_dir() != reference.is_dir():
        folder, file = (prediction, reference) if prediction.is_dir() else (reference, prediction)
        raise OptionsError(f"{printable(str(folder))} is a folder, {printable(str(file))} is none; compare two files or two folders")
    if not prediction.is_dir():
        return [Pair(prediction.stem, prediction, reference, confidence)]
    return [
        Pair(name, file, other, None if confidence is None else confidence / f"{name}_confidence.tif")
        for name, file, other in _partners(prediction, reference)
    ]


def _partners(prediction: Path, reference: Path) -> Iterator[tuple[str, Path, Path]]:
    """Scene, prediction and reference of two folders."""
    ours, theirs = _named(prediction, _PREDICTED), _named(reference, _LABELLED)
    if not ours:
        raise OptionsError(f"{printable(str(prediction))}: has no GeoTIFF that ends in _classes.tif, nor any other, and no polygons")
    for name, file in ours.items():
        if name not in theirs:
            raise OptionsError(
                f"{printable(str(file))}: has no reference; expected {name}.tif, {name}_label.tif or the like, or polygons, in "
                f"{printable(str(reference))}; or list the pairs in a CSV file with the columns prediction and reference"
            )
        yield name, file, theirs[name]


def _named(folder: Path, ending: str) -> dict[str, Path]:
    """Rasters of a folder by scene, those with the ending if there are any; if there are no rasters, the vector files."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    rasters = [file for file in files if file.suffix.lower() in (".tif", ".tiff")]
    marked = [file for file in rasters if re.search(ending, file.stem)]
    chosen = marked or rasters or [file for file in files if file.suffix.lower() in SUFFIXES]
    return {re.sub(ending, "", file.stem): file for file in chosen}


def _listed(path: Path) -> list[Pair]:
    """The pairs that a CSV file lists; its paths are relative to its folder."""
    name = printable(str(path))
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            rows = list(csv.DictReader(text))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OptionsError(f"{name}: not a readable CSV file; without a reference, expected a list of pairs") from error
    if not rows or not {"prediction", "reference"} <= rows[0].keys():
        raise OptionsError(f"{name}: lists no pairs; expected the columns prediction and reference, or give a reference")
    lacking = next((number for number, row in enumerate(rows, 2) if not row["prediction"] or not row["reference"]), None)
    if lacking is not None:
        raise OptionsError(f"{name}: line {lacking} lacks a prediction or a reference; complete it, or leave the line out")
    return [
        Pair(
            re.sub(_PREDICTED, "", Path(row["prediction"]).stem),
            path.parent / row["prediction"],
            path.parent / row["reference"],
            path.parent / row["confidence"] if row.get("confidence") else None,
        )
        for row in rows
    ]


def is_vector(path: Path) -> bool:
    """Whether a file is one of polygons, by its name."""
    return path.suffix.lower() in SUFFIXES
