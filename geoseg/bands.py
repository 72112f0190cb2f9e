"""Which bands of a file a model sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from geoseg.errors import BandsError
from geoseg.policy import printable

_PLAIN: Final = frozenset({"gray", "undefined"})
_NAMES: Final = frozenset({"red", "green", "blue", "nir", "rededge", "coastal", "yellow", "pan", "swir"})
_ALIASES: Final = {"r": "red", "g": "green", "b": "blue", "near infrared": "nir", "near-infrared": "nir"}


@dataclass(frozen=True, slots=True)
class Choice:
    """Bands to read.

    Attributes:
        numbers: in the file, from 1, in the order they were asked for.
        names: in the same order.
        notes: sentences about what was assumed.
    """

    numbers: tuple[int, ...]
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bands:
    """The bands of a file as it presents them.

    Attributes:
        path: printable, for messages.
        kinds: colour interpretation of each band, in GDAL's words (``red``, ``gray``, ``undefined``, ``alpha``, ...).
        labels: description of each band as a band name; empty where there is none.
    """

    path: str
    kinds: tuple[str, ...]
    labels: tuple[str, ...]

    @classmethod
    def of(cls, path: str, kinds: Sequence[str], descriptions: Sequence[str | None]) -> Bands:
        """Read the descriptions as band names: ``NIR``, ``near infrared`` and ``nir`` are one."""
        texts = (printable(text or "").lower() for text in descriptions)
        return cls(path, tuple(kinds), tuple(_ALIASES.get(text, text) for text in texts))

    @property
    def names(self) -> tuple[str, ...]:
        """The colour interpretation where it says something, else the description."""
        return tuple(label if kind in _PLAIN else kind for kind, label in zip(self.kinds, self.labels, strict=True))

    @property
    def data(self) -> tuple[int, ...]:
        """Numbers of all bands but alpha."""
        return tuple(number for number, kind in enumerate(self.kinds, 1) if kind != "alpha")

    def choose(self, wanted: Sequence[str] | None, numbers: Sequence[int] | None) -> Choice:
        """The bands given by number, or else those wanted by name, or else all but alpha.

        Raises:
            BandsError: if they are not there, or cannot be told apart.
        """
        if numbers is not None:
            return self._by_number(wanted, numbers)
        if wanted is not None:
            return self._by_name(tuple(wanted))
        if not self.data:
            raise BandsError(f"{self.path}: has no band but alpha; expected an image")
        return self._own(self.data)

    def _own(self, numbers: tuple[int, ...]) -> Choice:
        return Choice(numbers, tuple(self.names[number - 1] or f"band_{number}" for number in numbers))

    def _by_number(self, wanted: Sequence[str] | None, numbers: Sequence[int]) -> Choice:
        count, listed = len(self.kinds), ",".join(map(str, numbers))
        wrong = [str(number) for number in numbers if not 1 <= number <= count]
        if wrong or not numbers:
            asked = f"asks for band {', '.join(wrong)}" if wrong else "names no band"
            raise BandsError(f"{self.path}: --bands {listed} {asked}; the file has bands 1 to {count}")
        if wanted is None:
            return self._own(tuple(numbers))
        if len(numbers) != len(wanted):
            needed = f"{len(wanted)} ({', '.join(wanted)})"
            raise BandsError(f"{self.path}: --bands {listed} names {len(numbers)} bands; the model needs {needed}")
        return Choice(tuple(numbers), tuple(wanted))

    def _by_name(self, wanted: tuple[str, ...]) -> Choice:
        """All by colour interpretation, all by description, or mixed; failing these, by position."""
        for names in (self.kinds, self.labels, self.names):
            if all(names.count(name) == 1 for name in wanted):
                numbers = tuple(names.index(name) + 1 for name in wanted)
                self._refuse_contradiction(wanted, numbers)
                return Choice(numbers, wanted)
        choice = self._by_position(wanted) or self._nir_by_position(wanted)
        if choice is None:
            raise self._refusal(wanted)
        return choice

    def _by_position(self, wanted: tuple[str, ...]) -> Choice | None:
        """Bands without any name, as many as wanted or one more, in the order they are stored."""
        named = any(self.kinds[number - 1] not in _PLAIN or self.labels[number - 1] in _NAMES.union(wanted) for number in self.data)
        if named or not len(wanted) <= len(self.data) <= len(wanted) + 1:
            return None
        numbers = self.data[: len(wanted)]
        taken = ", ".join(f"{number} as {name}" for number, name in zip(numbers, wanted, strict=True))
        return Choice(numbers, wanted, (f"its bands have no names: band {taken} by position; if that is wrong, give --bands",))

    def _nir_by_position(self, wanted: tuple[str, ...]) -> Choice | None:
        """Near infrared where all other bands wanted have names and one band has none: formats have no word for it."""
        nameless = [number for number in self.data if self.kinds[number - 1] in _PLAIN and self.labels[number - 1] not in _NAMES]
        others = [name for name in wanted if name != "nir"]
        if len(nameless) != 1 or "nir" not in wanted or "nir" in self.names or any(self.names.count(name) != 1 for name in others):
            return None
        numbers = tuple(nameless[0] if name == "nir" else self.names.index(name) + 1 for name in wanted)
        self._refuse_contradiction(tuple(others), tuple(number for number in numbers if number != nameless[0]))
        return Choice(numbers, wanted, (f"band {nameless[0]} has no name and is taken as nir; if that is wrong, give --bands",))

    def _refuse_contradiction(self, wanted: tuple[str, ...], numbers: tuple[int, ...]) -> None:
        """Many writers call three bands red, green and blue whatever they hold: a description that says otherwise must be heard."""
        for name, number in zip(wanted, numbers, strict=True):
            kind, label = self.kinds[number - 1], self.labels[number - 1]
            if kind == name and label in _NAMES and label != name:
                raise BandsError(
                    f"{self.path}: band {number} is {kind} by its colour interpretation, {label} by its description; say which with --bands"
                )

    def _refusal(self, wanted: tuple[str, ...]) -> BandsError:
        counts = Counter(name if name in _NAMES else kind for kind, name in zip(self.kinds, self.names, strict=True))
        found = ", ".join(name if count == 1 else f"{count} x {name}" for name, count in counts.items())
        bands = "1 band" if len(self.kinds) == 1 else f"{len(self.kinds)} bands"
        example = ",".join(str(min(number, max(len(self.data), 1))) for number in range(1, len(wanted) + 1))
        return BandsError(
            f"{self.path}: has {bands} ({found}); the model needs ({', '.join(wanted)}). "
            f"Name them with --bands, as in --bands {example}, or choose another model"
        )
