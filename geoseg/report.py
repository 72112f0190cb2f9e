"""What a person looks at after a run."""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from geoseg._version import __version__
from geoseg.errors import OutputError
from geoseg.legend import NODATA, Legend
from geoseg.window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoseg.scene import Scene

SIDE = 1600
"""Longest side of a quicklook in pixels."""

_MARGIN, _GAP, _GUTTER = 40, 24, 56
_PANEL = (SIDE - 2 * _MARGIN - _GAP) // 2
_LONG, _TALL, _LOW = SIDE - 2 * _MARGIN, 1000, 440
_READABLE, _VISIBLE = 480, 40
_ALPHA = 0.55
_MOST = 12

_PAPER, _INK, _SOFT, _FAINT = "#ffffff", "#16191d", "#5f6872", "#c9ced4"
_TITLE, _TEXT, _SMALL = 38, 22, 16
_CELL, _SMALLEST_CELL, _ROW = 130, 34, 56
_RIGHT, _WRONG = "#1f6f8b", "#b5452c"
_LINE, _SWATCH, _BAR = _TEXT + 16, 46, 50
_STAND_INS = str.maketrans({"×": "x", "–": "-", "—": "-", "−": "-"})

Box = tuple[int, int, int, int]
"""Left, top, right and bottom, pixels."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of the legend: share of the valid area and amount, as text and as a part of 1; no colour means hatched."""

    title: str
    colour: str | None
    part: float
    share: str
    amount: str


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where things are in the picture."""

    size: tuple[int, int]
    panels: tuple[Box, Box]
    legend: Box
    columns: int


def panel_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Height and width at which a scene of this shape should be read for its quicklook; never larger than the scene."""
    height, width = shape
    widest, highest = (_LONG, _LOW) if _is_wide(shape) else (_PANEL, _TALL)
    factor = min(1.0, widest / width, highest / height)
    return max(1, round(height * factor)), max(1, round(width * factor))


def photograph(scene: Scene, window: Window) -> tuple[NDArray[np.generic], NDArray[np.bool_], float | None]:
    """A part of a scene as its quicklook shows it.

    Returns:
        ``(B, h, w)`` of the scene's dtype, ``(h, w)`` bool where it is data, and the size of one of its pixels on the ground in metres,
        None where that is unknown.

    Raises:
        ReadError: if a block of the file cannot be decoded.
    """
    whole, (height, width) = scene.shape, panel_shape(window.shape)
    small = tuple(max(1, round(n * part / full)) for n, part, full in zip(whole, (height, width), window.shape, strict=True))
    view = scene.resampled((small[0], small[1])) if small != whole else scene
    image, valid = view.read(Window(window.row * small[0] // whole[0], window.col * small[1] // whole[1], height, width))
    return image, valid, scene.pixel_m and scene.pixel_m * math.sqrt(window.area / (height * width))


def write_quicklook(
    path: str | Path,
    image: NDArray[np.generic],
    valid: NDArray[np.bool_],
    classes: NDArray[np.uint8],
    legend: Legend,
    counts: Sequence[int] | NDArray[np.int64],
    *,
    title: str,
    subtitle: str = "",
    areas_m2: Mapping[int, float] | None = None,
    panel_pixel_m: float | None = None,
    attribution: str = "",
    numbers: NDArray[np.int32] | None = None,
) -> None:
    """Draw image and map side by side, with legend and scale bar, to a PNG of at most 1600 pixels a side; all or nothing.

    Args:
        path: of the ``.png``; replaced where it exists.
        image: ``(B, h, w)`` of any real dtype, read at ``panel_shape``; the first three bands are shown as red, green and blue, one
            band as grey. uint8 is shown as it is, other types are stretched between their 2nd and 98th percentile.
        valid: ``(h, w)`` bool, where the image has data.
        classes: ``(h, w)`` uint8 class ids of the same ground, 0 = no data.
        legend: class titles and colours.
        counts: pixels of the whole map per class id, ``(256,)``.
        title: large line, e.g. the scene's name.
        subtitle: line below it, e.g. the model's name.
        areas_m2: true area of the whole map per class id; without it the legend counts pixels.
        panel_pixel_m: true size on the ground of one pixel of ``image``, metres; without it there is no scale bar.
        attribution: small print, e.g. the imagery's source and licence.
        numbers: ``(h, w)`` int32, of the instance at each pixel, 0 for none. With it the map shows instances over the image, each in a
            line of its colour, and ``counts`` are instances.

    Raises:
        OutputError: if the file cannot be written.
    """
    photo = _photo(image, valid)
    entries = (_entries if numbers is None else _instance_entries)(legend, np.asarray(counts, np.int64), areas_m2)
    plan = _arrange(valid.shape, entries)
    notes = _wrapped(attribution, _SMALL, plan.size[0] - 2 * _MARGIN)
    canvas = Image.new("RGB", (plan.size[0], plan.size[1] + len(notes) * (_SMALL + 6)), _PAPER)
    draw = ImageDraw.Draw(canvas)
    _draw_header(draw, plan, title, subtitle)
    _draw_panel(canvas, plan.panels[0], photo, valid)
    drawn, shown = (
        (_overlay(photo, classes, legend), classes != NODATA) if numbers is None else (_lined(photo, classes, numbers, legend), True)
    )
    _draw_panel(canvas, plan.panels[1], drawn, valid & shown)
    if panel_pixel_m is not None:
        _draw_scale(draw, plan, panel_pixel_m * max(valid.shape) / max(_shown_shape(valid.shape)))
    _draw_legend(canvas, plan, entries, "Share of the valid area" if numbers is None else "Instances and their area")
    for at, note in enumerate(notes):
        draw.text((_MARGIN, plan.size[1] + at * (_SMALL + 6)), note, font=_font(_SMALL, note), fill=_SOFT, anchor="ls")
    _save(canvas, Path(path), {"Software": f"geoseg {__version__}", "Title": title, "Copyright": attribution})


def write_confusion(path: str | Path, counts: NDArray[np.int64], titles: Sequence[str], *, subtitle: str = "") -> None:
    """Draw a confusion matrix to a PNG: a row for each class of the reference, its shares in each predicted class; all or nothing.

    Args:
        path: of the ``.png``; replaced where it exists.
        counts: (K, 1 + K) pixels, reference x prediction; the first column is "no prediction", and left out where it is empty.
        titles: of the K classes.
        subtitle: line below the title.

    Raises:
        OutputError: if the file cannot be written.
    """
    columns = [f"{title}" for title in titles]
    table = counts[:, 1:]
    if counts[:, 0].any():
        table, columns = counts, ["No prediction", *columns]
    totals = counts.sum(1)
    shares = np.divide(table, totals[:, np.newaxis], out=np.zeros(table.shape), where=totals[:, np.newaxis] > 0)
    wide = max(_SMALLEST_CELL, min(_CELL, (SIDE - 2 * _MARGIN - 460) // len(columns)))
    left, top = _MARGIN + math.ceil(min(260, max(_length(title, _TEXT) for title in titles))) + 20, _MARGIN + _TITLE + _TEXT + 84
    size = (max(left + wide * len(columns) + 170 + _MARGIN, 900), top + _ROW * len(titles) + 2 * _MARGIN)
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    _draw_line(draw, (_MARGIN, _MARGIN + _TITLE - 10), "Confusion matrix", _TITLE, _INK, size[0] - 2 * _MARGIN)
    _draw_line(draw, (_MARGIN, _MARGIN + _TITLE + _TEXT + 4), subtitle, _TEXT, _SOFT, size[0] - 2 * _MARGIN)
    for at, title in enumerate(columns):
        shown = _fitted(title, _SMALL, wide - 8)
        draw.text((left + wide * at + wide // 2, top - 10), shown, font=_font(_SMALL, shown), fill=_INK, anchor="ms")
    draw.text((left + wide * len(columns) + 170, top - 10), "Reference pixels", font=_font(_SMALL), fill=_SOFT, anchor="rs")
    for row, title in enumerate(titles):
        middle = top + _ROW * row + _ROW // 2
        shown = _fitted(title, _TEXT, left - _MARGIN - 20)
        draw.text((left - 14, middle), shown, font=_font(_TEXT, shown), fill=_INK, anchor="rm")
        for at, share in enumerate(shares[row].tolist()):
            box = (left + wide * at, top + _ROW * row, left + wide * (at + 1) - 2, top + _ROW * (row + 1) - 2)
            right = columns[at] == title
            draw.rectangle(box, fill=_shade(share, _RIGHT if right else _WRONG))
            if totals[row] and wide > _SMALLEST_CELL:
                draw.text(
                    (box[0] + wide // 2, middle), _share_text(share), font=_font(_SMALL), fill=_INK if share < 0.6 else _PAPER, anchor="mm"
                )
        draw.text((left + wide * len(columns) + 170, middle), f"{totals[row]:,}", font=_font(_SMALL), fill=_SOFT, anchor="rm")
    _save(canvas, Path(path), {"Software": f"geoseg {__version__}", "Title": "Confusion matrix", "Description": subtitle})


def write_reliability(path: str | Path, pixels: Sequence[int], accuracy: Sequence[float], ece: float | None, *, subtitle: str = "") -> None:
    """Draw a reliability diagram to a PNG: accuracy against confidence, and how many pixels have it; all or nothing.

    Args:
        path: of the ``.png``; replaced where it exists.
        pixels: (M,) of each of M equal bins of confidence from 0 to 1.
        accuracy: (M,) share of them that is right, 0 to 1; NaN where there are none.
        ece: expected calibration error, 0 to 1.
        subtitle: line below the title.

    Raises:
        OutputError: if the file cannot be written.
    """
    side, low, left, top = 640, 170, _MARGIN + 90, _MARGIN + _TITLE + _TEXT + 44
    size = (left + side + _MARGIN + 90, top + side + low + 130)
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    title = "Reliability" if ece is None else f"Reliability: expected calibration error {ece:.3f}"
    _draw_line(draw, (_MARGIN, _MARGIN + _TITLE - 10), title, _TITLE, _INK, size[0] - 2 * _MARGIN)
    _draw_line(draw, (_MARGIN, _MARGIN + _TITLE + _TEXT + 4), subtitle, _TEXT, _SOFT, size[0] - 2 * _MARGIN)
    base, most = top + side, max(*pixels, 1)
    floor = base + low + 36
    for tick in range(0, 11, 2):
        x, y = left + side * tick // 10, base - side * tick // 10
        draw.line((left, y, left + side, y), fill=_FAINT)
        draw.text((left - 12, y), f"{tick / 10:.1f}", font=_font(_SMALL), fill=_SOFT, anchor="rm")
        draw.text((x, floor + 10), f"{tick / 10:.1f}", font=_font(_SMALL), fill=_SOFT, anchor="ma")
    for at, (count, share) in enumerate(zip(pixels, accuracy, strict=True)):
        first, last = left + side * at // len(pixels) + 1, left + side * (at + 1) // len(pixels) - 1
        if count:
            draw.rectangle((first, base - round(side * share), last, base), fill=_RIGHT)
            draw.rectangle((first, floor - max(1, round(low * count / most)), last, floor), fill=_SOFT)
    draw.line((left, base, left + side, top), fill=_WRONG, width=3)
    draw.line((left, base, left + side, base), fill=_INK)
    draw.line((left, floor, left + side, floor), fill=_INK)
    said = "Accuracy of the pixels of each confidence; on the line it is as stated"
    draw.text((left, top - 12), said, font=_font(_SMALL), fill=_INK, anchor="ls")
    draw.text((left + 14, base + 20), f"Pixels, at most {_pixels_text(most)} in a bar", font=_font(_SMALL), fill=_INK)
    draw.text((left + side // 2, floor + 38), "Confidence", font=_font(_TEXT), fill=_INK, anchor="ma")
    _save(canvas, Path(path), {"Software": f"geoseg {__version__}", "Title": "Reliability diagram", "Description": subtitle})


def write_chips(
    path: str | Path, chips: Sequence[NDArray[np.float32]], labels: Sequence[NDArray[np.uint8]], allowed: NDArray[np.bool_], legend: Legend
) -> None:
    """Draw training chips, each beside its labels, so that a person sees what a network will be shown.

    A pixel that may have one class has that class's colour, over the chip; one that may have several has their mean, where no chip
    shines through; an unlabelled one is hatched.

    Args:
        path: PNG to write.
        chips: (B, H, W) each, values in 0..1; the first three bands are shown as red, green, blue, or else the first as grey.
        labels: codes (H, W) each.
        allowed: (256, K), the classes each code allows.
        legend: the classes.

    Raises:
        OutputError: if the picture cannot be written.
    """
    colours = np.array([c.rgb for c in legend.classes], np.float64)
    number = allowed.sum(1)
    means = (allowed @ colours / np.maximum(number, 1)[:, None]).astype(np.float64)
    height, width = labels[0].shape
    columns = max(1, round(math.sqrt(len(chips) * height / (2 * width))))
    rows = -(-len(chips) // columns)
    canvas = Image.new("RGB", (columns * (2 * width + _GAP) + _GAP, rows * (height + _GAP) + _GAP), _PAPER)
    for index, (values, codes) in enumerate(zip(chips, labels, strict=True)):
        left = _GAP + index % columns * (2 * width + _GAP)
        top = _GAP + index // columns * (height + _GAP)
        photo = np.rint(255 * (values[:3] if len(values) >= 3 else values[[0, 0, 0]]).clip(0, 1)).astype(np.uint8).transpose(1, 2, 0)
        share = np.where(number[codes] > 1, 1.0, _ALPHA)[..., None]
        painted = np.rint(share * means[codes] + (1 - share) * photo).astype(np.uint8)
        canvas.paste(Image.fromarray(np.ascontiguousarray(photo)), (left, top))
        canvas.paste(_hatching((width, height)), (left + width, top))
        canvas.paste(Image.fromarray(painted), (left + width, top), Image.fromarray(np.where(number[codes] > 0, 255, 0).astype(np.uint8)))
    _save(canvas, Path(path), {}, side=max(canvas.size))


def _shade(share: float, colour: str) -> tuple[int, int, int]:
    """From paper to a colour."""
    full = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    red, green, blue = (round(255 + (part - 255) * share**0.7) for part in full)
    return red, green, blue


def _is_wide(shape: tuple[int, int]) -> bool:
    """Whether the panels stand above each other instead of side by side."""
    return shape[1] > 1.9 * shape[0]


def _photo(image: NDArray[np.generic], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The image as ``(h, w, 3)`` uint8."""
    bands = image[:3] if image.shape[0] >= 3 else image[[0, 0, 0]]
    if bands.dtype != np.uint8:
        bands = np.stack([_stretched(band.astype(np.float64), valid) for band in bands])
    return np.ascontiguousarray(np.moveaxis(bands, 0, -1), np.uint8)


def _stretched(band: NDArray[np.float64], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A band between its 2nd and 98th percentile as 0 to 255."""
    usable = valid & np.isfinite(band)
    if not usable.any():
        return np.zeros(band.shape, np.uint8)
    low, high = np.percentile(band[usable], (2, 98))
    part = np.where(usable, band - low, 0) / max(high - low, np.finfo(np.float64).tiny)
    return np.asarray(np.round(255 * np.clip(part, 0, 1)), np.uint8)


def _overlay(photo: NDArray[np.uint8], classes: NDArray[np.uint8], legend: Legend) -> NDArray[np.uint8]:
    """Class colours over the image in grey, which keeps them true."""
    palette = np.zeros((256, 3))
    for item in legend.classes:
        palette[item.id] = item.rgb
    grey = photo @ np.array([0.299, 0.587, 0.114])
    return np.asarray(np.round(_ALPHA * palette[classes] + (1 - _ALPHA) * grey[..., np.newaxis]), np.uint8)


def _lined(photo: NDArray[np.uint8], classes: NDArray[np.uint8], numbers: NDArray[np.int32], legend: Legend) -> NDArray[np.uint8]:
    """Instances over the image in grey, in class colours, full where an instance begins and faint inside."""
    flat = np.pad(numbers, 1, mode="edge")
    sides = (flat[:-2, 1:-1], flat[2:, 1:-1], flat[1:-1, :-2], flat[1:-1, 2:])
    line = np.any([side != numbers for side in sides], axis=0) & (numbers > 0)
    filled, none = _overlay(photo, classes, legend), (numbers == 0)[..., np.newaxis]
    palette = np.zeros((256, 3), np.uint8)
    for item in legend.classes:
        palette[item.id] = item.rgb
    grey = np.round(photo @ np.array([0.299, 0.587, 0.114]))[..., np.newaxis].astype(np.uint8)
    return np.where(line[..., np.newaxis], palette[classes], np.where(none, grey, filled))


def _instance_entries(legend: Legend, counts: NDArray[np.int64], areas_m2: Mapping[int, float] | None) -> list[_Entry]:
    """The lines of the legend of instances: their number, and what they cover."""
    covered = areas_m2 or {}
    total = sum(covered.values()) or 1.0
    kept = sorted(legend.classes, key=lambda c: -counts[c.id])[:_MOST]
    return [
        _Entry(c.title, c.colour, covered.get(c.id, 0.0) / total, f"{counts[c.id]:,}", _area_text(covered[c.id]) if areas_m2 else "")
        for c in legend.classes
        if c in kept
    ]


def _entries(legend: Legend, counts: NDArray[np.int64], areas_m2: Mapping[int, float] | None) -> list[_Entry]:
    """The lines of the legend, in the legend's order; of many classes the largest, and the rest in one."""
    amounts = {c.id: float(counts[c.id]) if areas_m2 is None else areas_m2.get(c.id, 0.0) for c in legend.classes}
    total = sum(amounts.values()) or 1.0
    say = _pixels_text if areas_m2 is None else _area_text

    def entry(title: str, colour: str, amount: float) -> _Entry:
        return _Entry(title, colour, amount / total, _share_text(amount / total), say(amount))

    kept = set(amounts) if len(amounts) <= _MOST else set(sorted(amounts, key=lambda i: (-amounts[i], i))[: _MOST - 1])
    entries = [entry(c.title, c.colour, amounts[c.id]) for c in legend.classes if c.id in kept]
    rest = [amount for class_id, amount in amounts.items() if class_id not in kept]
    if rest:
        entries.append(entry(f"{len(rest)} other classes", _SOFT, sum(rest)))
    if counts[NODATA]:
        entries.append(_Entry("No data", None, 0.0, _share_text(float(counts[NODATA] / counts.sum())), "of scene"))
    return entries


def _area_text(area_m2: float) -> str:
    """An area in m², ha or km², three digits."""
    for unit, size in (("km²", 1e6), ("ha", 1e4)):
        if area_m2 >= size:
            return f"{_digits(area_m2 / size)} {unit}"
    return f"{_digits(area_m2)} m²"


def _pixels_text(count: float) -> str:
    return f"{count:,.0f} px"


def _digits(value: float) -> str:
    """Three significant digits, at most two after the point."""
    if value == 0 or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _share_text(share: float) -> str:
    if not share:
        return "0 %"
    return "< 0.1 %" if share < 0.001 else f"{100 * share:.1f} %"


def _arrange(shape: tuple[int, int], entries: Sequence[_Entry]) -> _Plan:
    """Panels side by side, or one above the other for a wide scene; the legend beside them where it fits, else below."""
    height, width = _shown_shape(shape)
    top = _MARGIN + _TITLE + _TEXT + 44
    first = (_MARGIN, top, _MARGIN + width, top + height)
    across, down = (0, height + _GAP) if _is_wide(shape) else (width + _GAP, 0)
    second = (first[0] + across, first[1] + down, first[2] + across, first[3] + down)
    needed = _SWATCH + sum(_columns(entries))
    below, left = second[3] + 48, second[2] + 2 * _GAP
    if left + needed + _MARGIN <= SIDE:
        legend = (left, top + _TEXT + 4, left + needed, top + _TEXT + 4 + _BAR + len(entries) * _LINE)
        return _Plan((legend[2] + _MARGIN, max(below, legend[3]) + _MARGIN), (first, second), legend, 1)
    fitting = max(1, min(4, (second[2] - _MARGIN + _GUTTER) // (needed + _GUTTER)))
    rows = -(-len(entries) // fitting)
    legend = (_MARGIN, below + 34, max(second[2], _MARGIN + needed), below + 34 + _BAR + rows * _LINE)
    return _Plan((legend[2] + _MARGIN, legend[3] + _MARGIN), (first, second), legend, -(-len(entries) // rows))


def _columns(entries: Sequence[_Entry]) -> tuple[int, int, int]:
    """Widths of titles, shares and amounts, the last two with the space before them."""
    titles = min(420, max(_length(entry.title, _TEXT) for entry in entries))
    shares = max(_length(entry.share, _TEXT) for entry in entries)
    amounts = max(_length(entry.amount, _TEXT) for entry in entries)
    return math.ceil(titles), math.ceil(shares) + 28, math.ceil(amounts) + 22


def _shown_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a panel: small scenes are enlarged by whole factors, a sliver is widened until it can be seen."""
    factor = max(1, _READABLE // max(shape))
    height, width = shape[0] * factor, shape[1] * factor
    return max(height, _VISIBLE), max(width, _VISIBLE)


def _draw_header(draw: ImageDraw.ImageDraw, plan: _Plan, title: str, subtitle: str) -> None:
    room = plan.size[0] - 2 * _MARGIN
    _draw_line(draw, (_MARGIN, _MARGIN + _TITLE - 10), title, _TITLE, _INK, room)
    _draw_line(draw, (_MARGIN, _MARGIN + _TITLE + _TEXT + 4), subtitle, _TEXT, _SOFT, room)


def _draw_panel(canvas: Image.Image, box: Box, picture: NDArray[np.uint8], shown: NDArray[np.bool_]) -> None:
    """Paste a picture, enlarged without smoothing; hatched where nothing is to be shown."""
    size = (box[2] - box[0], box[3] - box[1])
    mask = Image.fromarray(shown.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    canvas.paste(_hatching(size), box)
    canvas.paste(Image.fromarray(picture).resize(size, Image.Resampling.NEAREST), box, mask)
    ImageDraw.Draw(canvas).rectangle((box[0] - 1, box[1] - 1, box[2], box[3]), outline=_FAINT)


def _hatching(size: tuple[int, int]) -> Image.Image:
    """Grey diagonal stripes, the sign for no data."""
    across, down = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    return Image.fromarray(np.where((across + down) % 10 < 3, 205, 236).astype(np.uint8)).convert("RGB")


def _draw_scale(draw: ImageDraw.ImageDraw, plan: _Plan, pixel_m: float) -> None:
    """A bar of two halves below the panels; ``pixel_m`` metres on the ground are one pixel of the picture."""
    left, top = _MARGIN, plan.panels[1][3] + 20
    length_m = _round_length(max(120, (plan.panels[1][2] - left) * 0.23) * pixel_m)
    half, end = (round(left + length_m / pixel_m * part) for part in (0.5, 1))
    draw.rectangle((left, top, end, top + 8), fill=_PAPER, outline=_INK)
    draw.rectangle((left, top, half, top + 8), fill=_INK)
    draw.text((end + 12, top + 4), _length_text(length_m), font=_font(_TEXT - 3), fill=_INK, anchor="lm")


def _round_length(most: float) -> float:
    """The largest 1, 2 or 5 times a power of ten that is not above ``most``."""
    power = 10.0 ** math.floor(math.log10(most))
    return max(step * power for step in (1, 2, 5) if step * power <= most)


def _length_text(length_m: float) -> str:
    if length_m >= 1000:
        return f"{length_m / 1000:g} km"
    return f"{length_m:g} m" if length_m >= 1 else f"{length_m * 100:g} cm"


def _draw_legend(canvas: Image.Image, plan: _Plan, entries: Sequence[_Entry], heading: str) -> None:
    """A bar of the shares, and below it swatch, title, share and amount of each class, column by column."""
    draw = ImageDraw.Draw(canvas)
    left, top, right, _ = plan.legend
    draw.text((right, top - 10), heading, font=_font(_SMALL), fill=_SOFT, anchor="rs")
    _draw_shares(draw, (left, top, right, top + 16), entries)
    rows = -(-len(entries) // plan.columns)
    pitch = (right - left + _GUTTER) / plan.columns
    for at, entry in enumerate(entries):
        place = left + round(at // rows * pitch), top + _BAR + at % rows * _LINE
        _draw_entry(canvas, entry, place, round(pitch) - _GUTTER, _columns(entries))


def _draw_shares(draw: ImageDraw.ImageDraw, box: Box, entries: Sequence[_Entry]) -> None:
    """One bar, cut in proportion to the classes."""
    start = 0.0
    for entry in entries:
        first, last = (round(box[0] + (box[2] - box[0]) * part) for part in (start, start + entry.part))
        if entry.colour is not None and last > first:
            draw.rectangle((first, box[1], last, box[3]), fill=entry.colour)
        start += entry.part
    draw.rectangle(box, outline=_FAINT)


def _draw_entry(canvas: Image.Image, entry: _Entry, at: tuple[int, int], width: int, columns: tuple[int, int, int]) -> None:
    """One line of the legend; ``at`` is its left end and middle height."""
    draw, (x, y) = ImageDraw.Draw(canvas), at
    swatch = (x, y - 11, x + 32, y + 11)
    if entry.colour is None:
        canvas.paste(_hatching((32, 22)), swatch)
    draw.rectangle(swatch, fill=entry.colour, outline=_FAINT)
    _draw_right(draw, (x + width, y), entry.amount, _SOFT)
    _draw_right(draw, (x + width - columns[2], y), entry.share, _INK)
    title = _fitted(entry.title, _TEXT, width - _SWATCH - columns[1] - columns[2])
    draw.text((x + _SWATCH, y), title, font=_font(_TEXT, title), fill=_INK, anchor="lm")


def _draw_right(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, colour: str) -> None:
    """A figure with its unit, ``at`` its right end; the built-in font has no ², so a small 2 is raised."""
    x, (body, square, _) = at[0], text.partition("²")
    if square:
        draw.text((x, at[1] - _TEXT * 0.3), "2", font=_font(_TEXT * 3 // 5), fill=colour, anchor="rm")
        x -= math.ceil(_length("2", _TEXT * 3 // 5))
    draw.text((x, at[1]), body, font=_font(_TEXT), fill=colour, anchor="rm")


def _draw_line(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str, room: int) -> None:
    """One line of text, ``at`` its left end on the base line; smaller where it does not fit, then shortened."""
    while size > _SMALL and _length(text, size) > room:
        size -= 1
    text = _fitted(text, size, room)
    draw.text(at, text, font=_font(size, text), fill=colour, anchor="ls")


def _wrapped(text: str, size: int, room: float) -> list[str]:
    """Lines of text that fit, cut between words."""
    lines: list[str] = []
    for word in _clean(text).split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _length(longer, size) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _fitted(text: str, size: int, room: float) -> str:
    """One line of text, shortened until it fits."""
    text = _clean(text)
    if _length(text, size) <= room:
        return text
    while text and _length(f"{text}…", size) > room:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _length(text: str, size: int) -> float:
    """Width of a line of text, pixels; a ² as it is drawn."""
    body = _clean(text.replace("²", ""))
    return _font(size, body).getlength(body) + (_font(size * 3 // 5).getlength("2") if "²" in text else 0)


def _clean(text: str) -> str:
    """Text of any origin as one printable line."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text.translate(_STAND_INS))
    return " ".join(printable.split())


@cache
def _font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """Pillow's built-in font; for letters that it lacks, DejaVu Sans where the system has it."""
    built_in = ImageFont.load_default(size)
    if not isinstance(built_in, ImageFont.FreeTypeFont):
        raise OutputError("Pillow was built without FreeType, which the quicklook needs; install Pillow's own wheel")
    unknown = bytes(built_in.getmask("\uffff"))
    if any(not letter.isascii() and bytes(built_in.getmask(letter)) == unknown for letter in text):
        with suppress(OSError):
            return ImageFont.truetype("DejaVuSans.ttf", size * 9 // 10)
    return built_in


def _save(canvas: Image.Image, path: Path, facts: Mapping[str, str], side: int = SIDE) -> None:
    """Write a PNG no longer than ``side`` beside its name, then rename it.

    Raises:
        OutputError: if that fails.
    """
    notes = PngInfo()
    for key, value in facts.items():
        if value:
            notes.add_itxt(key, _clean(value))
    canvas.thumbnail((side, side))
    png = io.BytesIO()
    canvas.save(png, "PNG", pnginfo=notes, compress_level=6)
    try:
        with tempfile.TemporaryDirectory(prefix=f".geoseg-{os.getpid()}-", dir=path.parent) as work:
            draft = Path(work, "quicklook.png")
            with draft.open("wb") as file:
                file.write(png.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose a folder with room for it (--out)") from error
