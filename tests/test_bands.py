"""Which bands a model sees."""

from __future__ import annotations

import pytest

from geoseg.bands import Bands
from geoseg.errors import BandsError

RGB = ("red", "green", "blue")
PLAIN = ("gray", "undefined", "undefined", "undefined")


def bands(kinds: tuple[str, ...], *descriptions: str | None) -> Bands:
    return Bands.of("s.tif", kinds, descriptions or (None,) * len(kinds))


@pytest.mark.parametrize(
    ("found", "wanted", "numbers"),
    [
        (bands(RGB), RGB, (1, 2, 3)),
        (bands(("blue", "green", "red")), RGB, (3, 2, 1)),
        (bands((*RGB, "undefined")), RGB, (1, 2, 3)),
        (bands((*RGB, "alpha")), RGB, (1, 2, 3)),
        (bands((*RGB, "nir")), ("nir", "red", "green"), (4, 1, 2)),
        (bands(("blue", "green", "red", "undefined"), "blue", "green", "red", "nir"), ("nir", "red", "green"), (4, 3, 2)),
        (bands(PLAIN, "Blue", "Green", "Red", "Near Infrared"), RGB, (3, 2, 1)),
        (bands(RGB, "NIR", "red", "green"), ("nir", "red", "green"), (1, 2, 3)),
        (bands(PLAIN[:2], "height", "slope"), ("slope",), (2,)),
        (bands(("gray",)), ("gray",), (1,)),
    ],
)
def test_bands_are_found_by_name(found: Bands, wanted: tuple[str, ...], numbers: tuple[int, ...]) -> None:
    choice = found.choose(wanted, None)
    assert (choice.numbers, choice.names, choice.notes) == (numbers, wanted, ())


@pytest.mark.parametrize("kinds", [PLAIN[:3], PLAIN, (*PLAIN[:3], "alpha"), (*PLAIN, "alpha")])
def test_nameless_bands_are_taken_by_position_and_it_is_said(kinds: tuple[str, ...]) -> None:
    choice = bands(kinds).choose(RGB, None)
    assert choice.numbers == (1, 2, 3)
    assert "band 1 as red, 2 as green, 3 as blue by position" in choice.notes[0]


def test_one_nameless_band_beside_named_ones_is_near_infrared() -> None:
    choice = bands((*RGB, "undefined")).choose(("nir", "red", "green"), None)
    assert choice.numbers == (4, 1, 2)
    assert "band 4" in choice.notes[0]


@pytest.mark.parametrize(
    ("found", "wanted", "told"),
    [
        (bands(("gray",)), RGB, "has 1 band (gray); the model needs (red, green, blue)"),
        (bands(("gray", "undefined")), RGB, "has 2 bands (gray, undefined)"),
        (bands(("gray", "alpha")), RGB, "--bands 1,1,1"),
        (bands(("gray", *["undefined"] * 12)), RGB, "has 13 bands (gray, 12 x undefined)"),
        (bands(PLAIN[:3], "nir", "red", "green"), RGB, "(nir, red, green)"),
        (bands(RGB), ("nir", "red", "green"), "has 3 bands (red, green, blue); the model needs (nir, red, green)"),
        (bands((*RGB, "alpha")), ("nir", "red", "green"), "(red, green, blue, alpha)"),
        (bands((*RGB, "undefined", "undefined")), ("nir", "red", "green"), "5 bands"),
        (bands(RGB, "nir", "red", "green"), RGB, "band 1 is red by its colour interpretation, nir by its description"),
        (bands(("red", "red", "blue")), RGB, "2 x red"),
    ],
)
def test_what_cannot_be_told_is_asked(found: Bands, wanted: tuple[str, ...], told: str) -> None:
    with pytest.raises(BandsError) as caught:
        found.choose(wanted, None)
    assert told in str(caught.value)
    assert "--bands" in str(caught.value)
    assert str(caught.value).startswith("s.tif: ")


def test_numbers_override_names() -> None:
    assert bands(RGB).choose(RGB, (3, 3, 1)).numbers == (3, 3, 1)
    assert bands(PLAIN).choose(None, (4, 2)).names == ("band_4", "band_2")


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ((1, 2, 4), "asks for band 4; the file has bands 1 to 3"),
        ((0, 1, 2), "band 0"),
        ((), "names no band"),
        ((1, 2), "the model needs 3"),
    ],
)
def test_wrong_numbers_are_refused(numbers: tuple[int, ...], told: str) -> None:
    with pytest.raises(BandsError) as caught:
        bands(RGB).choose(RGB, numbers)
    assert told in str(caught.value)


def test_nothing_wanted_means_all_but_alpha() -> None:
    choice = bands((*RGB, "alpha")).choose(None, None)
    assert (choice.numbers, choice.names) == ((1, 2, 3), RGB)
    assert bands(PLAIN, "a", None, "", "d").choose(None, None).names == ("a", "band_2", "band_3", "d")
    with pytest.raises(BandsError, match="no band but alpha"):
        bands(("alpha",)).choose(None, None)


def test_a_description_cannot_reach_the_terminal() -> None:
    with pytest.raises(BandsError) as caught:
        bands(("gray",), "\x1b[31mred\n").choose(RGB, None)
    assert str(caught.value).isprintable()
