"""Plain folders of images and partial labels, described by a ``set.yaml``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from geoseg.datasets.scenes import LabelledScene
from geoseg.errors import OptionsError, ReadError
from geoseg.legend import Legend
from geoseg.options import nearest, read_table

SET_NAME = "set.yaml"
_SUFFIXES = (".jpg", ".png", ".tif")
_LAST_CODE = 255
_FEW = 7  # classes, of which all sets can have codes of their own


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image and its label codes, described; no file is open.

    Attributes:
        name: the file name without its ending.
        pixels: path of the 8-bit RGB image.
        labels: path of the 8-bit codes, same width and height.
        gsd_m: metres on the ground per pixel.
    """

    name: str
    pixels: Path
    labels: Path
    gsd_m: float

    def read(self) -> tuple[Image.Image, Image.Image]:
        """Decode both files.

        Returns:
            pixels as an ``RGB`` picture and label codes as an ``L`` picture.

        Raises:
            ReadError: if a file is missing, cannot be decoded, or their sizes differ.
        """
        pixels, labels = _decode(self.pixels, "RGB"), _decode(self.labels, "L")
        if pixels.size != labels.size:
            raise ReadError(f"{self.labels}: {labels.size} pixels, but its image has {pixels.size}; they must be equal")
        return pixels, labels


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Images with labels: a folder with ``images/``, ``labels/`` and ``set.yaml``, or one of the layouts of this room.

    A label code stands for the set of classes that a pixel may have: one class, several, or none (no loss, no score).

    Attributes:
        name: of the folder.
        title: one line.
        licence: of imagery and labels, one line.
        attribution: to reproduce in model cards.
        allowed: (256, K) bool, the classes each code allows, in the legend's order.
        split: names of the images of each part, e.g. ``train`` and ``val``.
        images: by name; small ones that are decoded whole, or scenes that are read by windows.
    """

    name: str
    title: str
    licence: str
    attribution: str
    allowed: npt.NDArray[np.bool_]
    split: Mapping[str, tuple[str, ...]]
    images: Mapping[str, LabelledImage | LabelledScene]

    @classmethod
    def read(cls, folder: str | Path, legend: Legend) -> LabelledSet:
        """Read ``set.yaml`` and pair the files.

        Raises:
            OptionsError: if the description is missing or incomplete, or names a class the legend does not have.
            ReadError: if an image of the split is missing.
        """
        root = Path(folder)
        table = read_table(root / SET_NAME)
        absent = sorted({"title", "licence", "attribution", "gsd_m", "codes", "split"} - table.keys())
        if absent:
            raise OptionsError(
                f"{root / SET_NAME}: key {absent[0]!r} is missing; a set states title, licence, attribution, gsd_m, codes and split"
            )
        split = {part: tuple(str(name) for name in names or ()) for part, names in table["split"].items()}
        images = {name: _pair(root, name, table["gsd_m"]) for names in split.values() for name in names}
        allowed = allowed_by(table["codes"], legend, root / SET_NAME)
        return cls(root.name, str(table["title"]), one_line(table["licence"]), str(table["attribution"]), allowed, split, images)

    def select(self, part: str, keep: Sequence[str] = ("*",), drop: Sequence[str] = ()) -> tuple[LabelledImage | LabelledScene, ...]:
        """The images of one part whose name matches a pattern to keep and none to drop.

        Raises:
            OptionsError: if the set has no such part, or nothing is left.
        """
        if part not in self.split:
            raise OptionsError(f"{self.name}: no part {part!r}; {nearest(part, self.split)}")
        names = [name for name in self.split[part] if matches(name, keep) and not matches(name, drop)]
        if not names:
            without = f" without {', '.join(drop)}" if drop else ""
            known = f"its images are {', '.join(self.split[part][:5])}{', ...' if len(self.split[part]) > 5 else ''}"
            raise OptionsError(f"{self.name}: no image of part {part!r} matches {', '.join(keep)}{without}; {known}")
        return tuple(self.images[name] for name in names)


def read_codes(path: Path, legend: Legend) -> dict[int, npt.NDArray[np.bool_]]:
    """The classes (K,) that each code of a table ``codes`` allows, in the legend's order.

    Args:
        path: a YAML file with the key ``codes``, such as a ``set.yaml``.
        legend: the classes.

    Raises:
        OptionsError: if there is no such table, a code is not a number from 0 to 255, or a class is not in the legend.
    """
    codes: Any = read_table(path).get("codes")
    entries = codes.values() if isinstance(codes, dict) else [None]
    if not all(isinstance(entry, dict) and isinstance(entry.get("allowed"), list) for entry in entries):
        raise OptionsError(f"{path}: has no table 'codes' whose entries have a list 'allowed' of class names, as a labelled set has it")
    strange = next((code for code in codes if not (isinstance(code, int) and 0 <= code <= 255)), None)
    if strange is not None:
        raise OptionsError(f"{path}: code {strange!r} is no number from 0 to 255; give label codes as numbers")
    allowed = allowed_by(codes, legend, path)
    return {code: allowed[code] for code in sorted(codes)}


def _decode(path: Path, mode: str) -> Image.Image:
    try:
        with Image.open(path) as file:
            return file.convert(mode)
    except (OSError, UnidentifiedImageError) as error:
        raise ReadError(f"{path}: cannot be decoded ({error}); expected an 8-bit {mode} picture") from error


def _pair(root: Path, name: str, gsd_m: Any) -> LabelledImage:
    pixels = next((path for suffix in _SUFFIXES if (path := root / "images" / f"{name}{suffix}").is_file()), None)
    labels = root / "labels" / f"{name}.png"
    if pixels is None or not labels.is_file():
        raise ReadError(f"{root}: image {name!r} of the split has no file in {'images' if pixels is None else 'labels'}/")
    size = gsd_m.get(name) if isinstance(gsd_m, dict) else gsd_m
    if not isinstance(size, int | float) or size <= 0:
        raise OptionsError(f"{root / SET_NAME}: gsd_m of {name!r} is {size!r}, expected metres per pixel")
    return LabelledImage(name, pixels, labels, float(size))


def allowed_by(codes: Mapping[int, Any], legend: Legend, where: object) -> npt.NDArray[np.bool_]:
    """The classes that each code of a table allows; codes it does not name allow nothing.

    Args:
        codes: for each code a table whose key ``allowed`` lists classes by name, title, or what they include.
        legend: the classes.
        where: first word of the refusal.

    Returns:
        (256, K) bool.

    Raises:
        OptionsError: if the legend lacks a class.
    """
    channels = legend.channels
    allowed = np.zeros((256, len(legend)), bool)
    for code, entry in codes.items():
        for name in entry["allowed"]:
            if name.casefold() not in channels:
                raise OptionsError(f"{where}: code {code} allows {name!r}, which legend {legend.name!r} lacks; {nearest(name, channels)}")
            allowed[code, channels[name.casefold()]] = True
    return allowed


def number_sets(sets: Iterable[Sequence[str]], legend: Legend, where: object) -> dict[frozenset[str], int]:
    """A label code for each set of classes, so that sources with the same legend can be mixed.

    A single class has the code of its id, no class the code 0. A set of several classes has the same code in every source if the legend
    has at most seven classes; of larger legends they are numbered down from 255 as they come.

    Args:
        sets: classes by name, title, or what they include.
        legend: the classes.
        where: first word of the refusal.

    Raises:
        OptionsError: if the legend lacks a class.
    """
    channels = legend.channels
    numbers: dict[frozenset[str], int] = {}
    for names in map(frozenset, sets):
        for name in names:
            if name.casefold() not in channels:
                raise OptionsError(f"{where}: class {name!r} may be there, which legend {legend.name!r} lacks; {nearest(name, channels)}")
        if names in numbers:
            continue
        chosen = {channels[name.casefold()] for name in names}
        if len(chosen) <= 1:
            numbers[names] = legend.ids[chosen.pop()] if chosen else 0
        else:
            first = _LAST_CODE - (sum(2**channel for channel in chosen) if len(legend) <= _FEW else 0)
            numbers[names] = next(code for code in range(first, 0, -1) if code not in {*numbers.values(), *legend.ids})
    return numbers


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name matches one of the patterns, as in file names."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def one_line(value: Any) -> str:
    """A text or a table as one line."""
    text = "; ".join(f"{key}: {part}" for key, part in value.items()) if isinstance(value, dict) else str(value)
    return " ".join(text.split())
