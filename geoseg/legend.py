"""Class ids, names and colours."""

from __future__ import annotations

import colorsys
import itertools
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from geoseg.errors import OptionsError

NODATA = 0
"""The class id of pixels without data, in every legend."""

_RESERVED = {"layer_styles", "segments"}
_GOLDEN = 0.6180339887498949
_SLACK = 32
"""How far a channel may be from a class's colour: some published tiles of Potsdam say (252, 255, 0) for a car."""


class LegendClass(BaseModel):
    """One class of a legend.

    Attributes:
        id: value in class rasters, 1 to 255.
        name: identifier for layers and columns, ``[a-z_][a-z0-9_]*``.
        title: what people read.
        colour: ``#rrggbb``.
        includes: what labels of finer legends call parts of it, such as ``tree`` and ``car`` of a background.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int = Field(ge=1, le=255)
    name: str
    title: str
    colour: str
    includes: tuple[str, ...] = ()

    @field_validator("name")
    @classmethod
    def _is_identifier(cls, value: str) -> str:
        if not _is_free(value):
            raise ValueError(f"name {value!r} must match [a-z_][a-z0-9_]* with at most 30 letters, and not be reserved")
        return value

    @field_validator("colour")
    @classmethod
    def _is_colour(cls, value: str) -> str:
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", value):
            raise ValueError(f"colour {value!r} must be #rrggbb")
        return value.lower()

    @model_serializer(mode="wrap")
    def _lean(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if key != "includes" or value}

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green and blue, 0 to 255."""
        return int(self.colour[1:3], 16), int(self.colour[3:5], 16), int(self.colour[5:7], 16)


class Legend(BaseModel):
    """The classes a map distinguishes. Ids and names are unique; 0 is no data and never a class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    classes: tuple[LegendClass, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_unique(self) -> Legend:
        for fact in ("id", "name"):
            values = [getattr(c, fact) for c in self.classes]
            twice = sorted({v for v in values if values.count(v) > 1})
            if twice:
                raise ValueError(f"class {fact} {twice[0]!r} occurs twice")
        for c in self.classes:
            for words in c.includes:
                if self.channels[words.casefold()] != self.ids.index(c.id):
                    raise ValueError(f"class {c.name!r} includes {words!r}, and so does another, or is called so")
        return self

    @property
    def ids(self) -> tuple[int, ...]:
        """Class ids in the order of the network's channels."""
        return tuple(c.id for c in self.classes)

    @property
    def channels(self) -> dict[str, int]:
        """The network's channel of each class, by what labels may call it: name, title and what it includes, in small letters."""
        words = [(word, channel) for channel, c in enumerate(self.classes) for word in (*c.includes, c.title, c.name)]
        return {word.casefold(): channel for word, channel in words}

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def __getitem__(self, class_id: int) -> LegendClass:
        """The class with this id.

        Raises:
            KeyError: if there is none.
        """
        for c in self.classes:
            if c.id == class_id:
                return c
        raise KeyError(class_id)

    @classmethod
    def from_titles(cls, name: str, titles: Sequence[str]) -> Legend:
        """A legend of classes of which no more is known than what people call them.

        Args:
            name: of the legend.
            titles: of the classes 1, 2, ...; at least one, at most 255.
        """
        classes: list[LegendClass] = []
        for class_id, title in enumerate(titles, 1):
            known = {c.name for c in classes}
            identifier = next(each for each in identifiers(title, class_id) if _is_free(each, known))
            colour = "#{:02x}{:02x}{:02x}".format(*spread_colour(class_id))
            classes.append(LegendClass(id=class_id, name=identifier, title=title or f"Class {class_id}", colour=colour))
        return cls(name=name, classes=tuple(classes))

    @classmethod
    def from_yaml(cls, path: str | Path) -> Legend:
        """Read a legend from a YAML file with the keys ``name`` and ``classes`` (id, name, title, colour).

        Raises:
            OptionsError: if the file is missing, is not YAML, or does not describe a legend.
        """
        try:
            table: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            return cls.model_validate(table)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise OptionsError(f"{path}: not a readable YAML file ({str(error).splitlines()[0]})") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise OptionsError(f"{path}: not a legend: {where}: {first['msg']}") from error


class Colours:
    """Which code a colour stands for, in pictures whose colours are those of a legend; black is unlabelled.

    A colour is a class's if no channel is farther from it than 32, or than a quarter of the way to the next value that the legend
    has in this channel.

    Args:
        legend: the colours.
        codes: of each class, 1 to 255.
    """

    def __init__(self, legend: Legend, codes: Sequence[int]) -> None:
        self._legend = legend
        known = {c.rgb: code for c, code in zip(legend.classes, codes, strict=True)} | {(0, 0, 0): 0}
        self._places = np.empty((3, 256), np.int32)
        count = 1
        for band, places in enumerate(self._places):
            levels = np.array(sorted({colour[band] for colour in known}))
            far = np.abs(np.arange(256) - levels[:, None])
            slack = min(_SLACK, *(np.diff(levels) // 4).tolist(), 255)
            places[:] = np.where(far.min(0) <= slack, far.argmin(0) * count, -(2**28))
            count *= len(levels)
        self._codes = np.full(count + 1, -1, np.int16)  # the last place is that of no class
        for colour, code in known.items():
            self._codes[self._place(np.array(colour))] = code

    def decode(self, pixels: NDArray[np.uint8], valid: NDArray[np.bool_], path: object, place: tuple[int, int]) -> NDArray[np.uint8]:
        """Codes of a part of a picture.

        Args:
            pixels: (3, h, w).
            valid: (h, w) True = data; 0 elsewhere.
            path: of the picture, for the refusal.
            place: row and column of the part in the picture.

        Returns:
            (h, w) codes.

        Raises:
            OptionsError: at the first colour that is no class's.
        """
        codes = np.where(valid, self._codes[self._place(pixels)], 0)
        if codes.min(initial=0) < 0:
            row, col = (int(n) for n in np.argwhere(codes < 0)[0])
            titles = ", ".join(f"{c.rgb} {c.title}" for c in self._legend.classes)
            raise OptionsError(
                f"{path}: pixel row {place[0] + row}, column {place[1] + col} has the colour {tuple(pixels[:, row, col].tolist())}; "
                f"legend {self._legend.name!r} has {titles} and black (0, 0, 0) for no label; mend the file, or name the legend whose "
                "colours it has"
            )
        return codes.astype(np.uint8)

    def _place(self, pixels: NDArray[Any]) -> NDArray[np.int32]:
        red, green, blue = (places[band] for places, band in zip(self._places, pixels, strict=True))
        place: NDArray[np.int32] = np.maximum(red + green + blue, -1)
        return place


def identifiers(text: str, value: int) -> Iterator[str]:
    """Names that a class may get, the best first; the first ones may be taken or reserved, the others never end.

    Args:
        text: what it is called somewhere, in any letters.
        value: a number that tells it from others.
    """
    letters = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9]+", "_", letters).strip("_")[:30].rstrip("_")
    if name:
        yield name
        yield f"class_{name}"[:30]
    plain = f"class_{value}" if value >= 0 else f"class_minus_{-value}"
    yield plain
    yield from (f"{plain}_{number}" for number in itertools.count(2))


def spread_colour(number: int) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, that differ, near numbers most: hues a golden section apart, in three shades."""
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1, (0.65, 0.45, 0.85)[number % 3], (0.85, 0.95, 0.7)[number % 3])
    return round(255 * red), round(255 * green), round(255 * blue)


def _is_free(name: str, taken: Collection[str] = ()) -> bool:
    """Whether a class may have this name."""
    sound = re.fullmatch(r"[a-z_][a-z0-9_]{0,29}", name) and name not in _RESERVED and not name.startswith("gpkg_")
    return bool(sound) and name not in taken


ISPRS = Legend(
    name="isprs",
    classes=(
        LegendClass(id=1, name="impervious", title="Impervious surface", colour="#ffffff"),
        LegendClass(id=2, name="building", title="Building", colour="#0000ff"),
        LegendClass(id=3, name="low_vegetation", title="Low vegetation", colour="#00ffff"),
        LegendClass(id=4, name="tree", title="Tree", colour="#00ff00"),
        LegendClass(id=5, name="car", title="Car", colour="#ffff00"),
        LegendClass(id=6, name="clutter", title="Clutter", colour="#ff0000"),
    ),
)
"""The six classes and colours of the ISPRS 2D semantic labelling contest (Potsdam, Vaihingen)."""
