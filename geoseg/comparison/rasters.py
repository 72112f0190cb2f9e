"""Class rasters and their references, brought to the same classes and counted window by window."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoseg.boundaries import Contours, band, erode, groups
from geoseg.classes import ClassRaster, confidence_bytes
from geoseg.comparison.pairs import Pair, is_vector
from geoseg.confusion import Confusion, Reliability
from geoseg.datasets.labelled import read_codes
from geoseg.errors import OptionsError, SceneError
from geoseg.legend import ISPRS, Legend, LegendClass
from geoseg.outlines import Outlines
from geoseg.references import CODES, NOTHING, ClassReference, ColourReference, OutlineReference, Reference, channel_of, channels_of, dense
from geoseg.region import Region
from geoseg.scene import Policy, Scene, misfit
from geoseg.scores import Protocol, Scoring, Tally
from geoseg.segments import MOST_PIXELS, Errors, errors
from geoseg.window import Window

SPAN = (512, 8192)
"""Largest height and width of the windows that are read."""


@dataclass(frozen=True, eq=False)
class Choice:
    """How rasters are compared; the meaning of each field is that of `evaluate`'s argument.

    Attributes:
        protocol: its rules.
        legend: of both sides; None to find it.
        codes: YAML file of partial labels.
        class_name: what polygons without a class are.
        nodata: of predictions.
        reference_nodata: of references.
        boundary_px: width of bands along outlines.
        area: polygons in which labels count; None for everywhere.
        policy: which files may be opened.
    """

    protocol: Protocol
    legend: Legend | None
    codes: Path | None
    class_name: str | None
    nodata: float | None
    reference_nodata: float | None
    boundary_px: int
    area: Path | None
    policy: Policy


@dataclass(frozen=True, eq=False)
class Compared:
    """A prediction and its reference, described.

    Attributes:
        name: of the scene.
        prediction: the map.
        channels: (256,) uint8, channel of each class id of the prediction, from 1; 0 for none.
        reference: the labels.
        confidence: its raster, if any.
        region: where labels count.
        warnings: what was assumed.
    """

    name: str
    prediction: ClassRaster
    channels: NDArray[np.uint8]
    reference: Reference
    confidence: Scene | None
    region: Region
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Scenes whose classes were agreed on.

    Attributes:
        scenes: described.
        scoring: what their counts mean.
        outlines: object label of each code and of each channel, (256,) and (1 + K,) uint8; None where outlines are not compared.
        choice: how they are compared.
    """

    scenes: tuple[Compared, ...]
    scoring: Scoring
    outlines: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None
    choice: Choice

    @classmethod
    def of(cls, pairs: Sequence[Pair], choice: Choice) -> Comparison:
        """Look at all files, and agree on the classes.

        Raises:
            SceneError: if a file cannot be used, or grids differ.
            OptionsError: if classes do not fit together.
        """
        legend, scenes = _describe(pairs, choice)
        allowed = _common(scenes)
        found = None if choice.protocol.erode_px or not choice.boundary_px else groups(allowed)
        in_means = np.array([False, *(c.name != choice.protocol.leaves_out for c in legend.classes)])
        scoring = Scoring(legend, allowed, in_means, np.empty(0, np.intp) if found is None else found[2])
        return cls(tuple(scenes), scoring, None if found is None else found[:2], choice)

    def count(self, scene: Compared, watch: Callable[[str, int, int], None], span: tuple[int, int] = SPAN) -> Tally:
        """Read a scene window by window, with as much around each as the protocol and the outlines need.

        Args:
            scene: one of `scenes`.
            watch: called with stage, rows done and rows in all.
            span: largest height and width of a window; the counts do not depend on it.

        Raises:
            SceneError: if a file cannot be decoded.
            OptionsError: if a colour is no class's.
        """
        tally, whole = self.scoring.empty(), Window.of(scene.prediction.scene.shape)
        halo = self.choice.protocol.erode_px if self.outlines is None else self.choice.boundary_px + 1

        def windows() -> Iterator[Window]:
            for window in whole.split(*span):
                yield Window(window.row - halo, window.col - halo, window.height + 2 * halo, window.width + 2 * halo)

        read = zip(
            scene.prediction.read(windows()),
            scene.reference.read(windows()),
            _confidences(scene.confidence, whole.split(*span)),
            strict=True,
        )
        for (window, classes), labels, sure in read:
            watch(f"evaluate {scene.name}", max(window.row, 0), whole.height)
            tally += self._window(_counting(scene, window, labels), scene.channels[classes], sure, halo)
        return tally

    def regions(self, scene: Compared) -> Errors:
        """How well the regions between the borders of a scene are found; ``choice.class_name`` says of which class borders are.

        Raises:
            OptionsError: if there is no such class, a label allows several, or the scene is too large to be held.
        """
        legend, border, whole = self.scoring.legend, self.choice.class_name, Window.of(scene.prediction.scene.shape)
        names = [c.name for c in legend.classes]
        if border not in names:
            raise OptionsError(
                f"protocol 'isbi' compares regions between borders; say with --class which class these are: {', '.join(names)}"
            )
        allowed = self.scoring.allowed
        known = np.asarray(allowed.any(1))
        if (allowed.sum(1) > 1).any() or whole.area > MOST_PIXELS:
            raise OptionsError(
                f"{scene.reference.path}: has {whole.area / 1e6:.0f} million pixels, or labels that allow several classes; regions are "
                f"compared in images of one class for each pixel and of {MOST_PIXELS / 1e6:.0f} million at most: cut it with gdal_translate"
            )
        ((_, classes),) = scene.prediction.read([whole])
        (labels,) = scene.reference.read([whole])
        codes, channel = _counting(scene, whole, labels), names.index(border) + 1
        found = scene.channels[classes]
        return errors((found > 0) & (found != channel), ~allowed[codes, channel], known[codes])

    def _window(self, codes: NDArray[np.uint8], channels: NDArray[np.uint8], sure: NDArray[np.uint8] | None, halo: int) -> Tally:
        """The counts of a window (h, w), from codes and channels with ``halo`` pixels around it and confidence without."""
        none = self.scoring.empty()
        bands, contours, count = none.bands, none.contours, len(self.scoring.objects)
        if self.outlines is not None:
            truth, width = self.outlines[0][codes], self.choice.boundary_px
            guess = np.where(truth > 0, self.outlines[1][channels], np.uint8(0))
            bands = Confusion.of(band(truth[1:-1, 1:-1], width), band(guess[1:-1, 1:-1], width), count, count)
            contours = Contours.of(guess, truth, count, width)
        inner = (slice(halo, codes.shape[0] - halo), slice(halo, codes.shape[1] - halo))
        codes, channels = erode(codes, halo) if self.choice.protocol.erode_px else codes[inner], channels[inner]
        confusion = Confusion.of(codes, channels, *none.confusion.counts.shape)
        return Tally(confusion, bands, contours, none.reliability if sure is None else self._reliability(codes, channels, sure))

    def _reliability(self, codes: NDArray[np.uint8], channels: NDArray[np.uint8], sure: NDArray[np.uint8]) -> Reliability:
        """Only predictions count whose label allows one class: of a set of classes the confidence of one says nothing."""
        allowed = self.scoring.allowed
        scored = (allowed.sum(1) == 1)[codes] & (channels > 0)
        return Reliability.of(np.where(scored, sure, np.uint8(255)), allowed[codes, channels] & scored)


def _counting(scene: Compared, window: Window, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes (h, w) uint8 of a window, nothing where labels do not count."""
    codes, inside = np.zeros_like(labels), window & scene.region.window
    if inside is not None:
        place = inside.within(window)
        codes[place] = np.where(scene.region.mask(inside), labels[place], NOTHING)
    return codes


def _confidences(scene: Scene | None, windows: Iterable[Window]) -> Iterator[NDArray[np.uint8] | None]:
    """Confidence bytes (h, w) of each window in turn; None without a raster."""
    if scene is None:
        yield from (None for _ in windows)
        return
    with scene.reader() as reader:
        for window in windows:
            yield confidence_bytes(*reader.read(window), scene)


def _describe(pairs: Sequence[Pair], choice: Choice) -> tuple[Legend, list[Compared]]:
    """Look at all files, and agree on the classes."""
    for pair in pairs:
        if is_vector(pair.prediction):
            raise OptionsError(f"{pair.prediction}: is of polygons, another prediction is a raster; evaluate them apart")
    colours = {pair: found for pair in pairs if not is_vector(pair.reference) and (found := _colours(pair.reference, choice.policy))}
    plain = [pair for pair in pairs if choice.codes is None and not is_vector(pair.reference) and pair not in colours]
    stated = choice.legend or choice.protocol.legend
    ours = {pair: _raster(pair.prediction, choice.nodata, stated, choice) for pair in pairs}
    legend = stated or _own(ours.values()) or (ISPRS if colours or choice.codes else None)
    theirs = {pair: _raster(pair.reference, choice.reference_nodata, legend, choice) for pair in plain}
    legend = legend or _own(theirs.values())
    if legend is None:
        legend, numbers = _union([*ours.values(), *theirs.values()])
    else:
        numbers = list(legend.ids)
        ours = ours if stated else {pair: _raster(pair.prediction, choice.nodata, legend, choice) for pair in pairs}
    _check_legend(legend, choice.protocol)
    outlines = {pair: Outlines.read(pair.reference) for pair in pairs if is_vector(pair.reference)}
    labels = {pair: channels_of(each, legend, choice.class_name) for pair, each in outlines.items()}
    drawn = _drawn(outlines, labels, legend, choice.class_name)
    compared = []
    for pair in pairs:
        raster = ours[pair]
        truth: Reference
        if pair in outlines:
            truth = OutlineReference.of(outlines[pair], raster.scene.grid, legend, labels[pair], drawn)
        elif pair in colours:
            truth = ColourReference(colours[pair], legend, dense(len(legend)))
        elif pair in theirs:
            truth = ClassReference(theirs[pair], _codes(theirs[pair], numbers), dense(len(legend)))
        else:
            truth = _coded(pair.reference, choice, legend)
        sure = None if pair.confidence is None else Scene.describe(pair.confidence, indexes=(1,), policy=choice.policy)
        notes = [f"{raster.scene.path}: {note}" for note in raster.warnings]
        if isinstance(truth, ClassReference):
            notes += [f"{truth.path}: {note}" for note in truth.raster.warnings]
        notes = [note for note in notes if "the result" not in note]  # what a map on the raster's grid would lack
        if isinstance(truth, ClassReference | ColourReference):
            notes += _check_grid(raster.scene, truth.scene)
        if sure is not None:
            notes += _check_grid(raster.scene, sure)
        region = Region.of(raster.scene.grid, aoi=choice.area)
        compared.append(Compared(pair.name, raster, _codes(raster, numbers), truth, sure, region, tuple(dict.fromkeys(notes))))
    return legend, compared


def _own(rasters: Iterable[ClassRaster]) -> Legend | None:
    """The legend of the first raster that geoseg made."""
    return next((raster.legend for raster in rasters if raster.own), None)


def _raster(path: Path, nodata: float | None, legend: Legend | None, choice: Choice) -> ClassRaster:
    """A class raster, read with a legend if there is one.

    Raises:
        OptionsError: if geoseg made it with other classes than those of a legend that the user did not choose.
    """
    raster = ClassRaster.describe(path, nodata=nodata, legend=legend, policy=choice.policy)
    if legend is None or legend is choice.legend or not raster.own:
        return raster
    own = ClassRaster.describe(path, nodata=nodata, policy=choice.policy)
    ours, theirs = ([f"{c.id} {c.name}" for c in each.classes] for each in (own.legend, legend))
    if ours != theirs:
        raise OptionsError(
            f"{own.scene.path}: has the classes {', '.join(ours)}; expected {', '.join(theirs)}; say with --legend what all rasters mean"
        )
    return own


def _check_legend(legend: Legend, protocol: Protocol) -> None:
    wanted = {c.name for c in protocol.legend.classes} if protocol.legend else set()
    lacking = sorted(wanted - {c.name for c in legend.classes})
    if lacking:
        raise OptionsError(f"legend {legend.name!r} has no class {', '.join(lacking)}, which the protocol is about; use --protocol plain")


def _drawn(
    outlines: Mapping[Pair, Outlines], labels: Mapping[Pair, NDArray[np.uint8]], legend: Legend, name: str | None
) -> NDArray[np.bool_]:
    """(1 + K,) bool, the channels of the polygons of all files; if there are none, of the class that they would have."""
    drawn = np.zeros(1 + len(legend), bool)
    for each in labels.values():
        drawn[each] = True
    if not drawn.any() or name is not None:
        drawn[[channel_of(each, name, legend) for each in outlines.values()]] = True
    return drawn


def _colours(path: str | Path, policy: Policy) -> Scene | None:
    """A raster with red, green and blue bytes; None if it is something else."""
    try:
        scene = Scene.describe(path, policy=policy)
    except SceneError:  # a palette, say; it is judged again as a class raster
        return None
    return scene if len(scene.bands) == 3 and scene.dtype == "uint8" else None


def _coded(path: Path, choice: Choice, legend: Legend) -> ClassReference:
    """A raster of codes that stand for sets of classes."""
    sets = read_codes(choice.codes or Path(), legend)
    known = tuple(LegendClass(id=code, name=f"code_{code}", title=f"Code {code}", colour="#000000") for code in sets if code)
    names = Legend(name=str(choice.codes), classes=known)
    raster = ClassRaster.describe(path, nodata=choice.reference_nodata, legend=names, policy=choice.policy)
    allowed = np.zeros((CODES, 1 + len(legend)), bool)
    for code, classes in sets.items():
        allowed[code, 1:] = classes
    return ClassReference(raster, np.arange(CODES, dtype=np.uint8), allowed)


def _common(scenes: Sequence[Compared]) -> NDArray[np.bool_]:
    """The meaning of codes in all references.

    Raises:
        OptionsError: if it differs.
    """
    first = scenes[0].reference
    for each in scenes[1:]:
        if not np.array_equal(each.reference.allowed, first.allowed):
            raise OptionsError(
                f"{each.reference.path}: its labels mean something else than those of {first.path}, as polygons do beside rasters; "
                "evaluate them apart"
            )
    return first.allowed


def _check_grid(scene: Scene, other: Scene) -> list[str]:
    """A note if one of two rasters of one size does not say where it is, or in which CRS.

    Raises:
        SceneError: if they are not on one grid.
    """
    seen = misfit(scene, other)
    nameless = [each for each in (scene, other) if each.grid.crs is None]
    if seen is not None and len(nameless) == 1 and scene.shape == other.shape:
        seen = misfit(*(replace(each, grid=GeoBox(each.shape, each.grid.affine, None)) for each in (scene, other)))
        if seen is None:
            return [f"{nameless[0].path}: has no CRS, but the place of the other; it is taken to have that of the other"]
        if nameless[0].grid.transform.is_identity:
            return [f"{nameless[0].path}: has no georeference, but the size of the other; they are taken to lie on each other"]
    if seen is not None:
        raise SceneError(
            f"{other.path}: has {seen}, as {scene.path} has; both must lie on one grid: bring one to the other's with "
            "gdalwarp -r near -t_srs, -te and -ts"
        )
    return []


def _union(rasters: Sequence[ClassRaster]) -> tuple[Legend, list[int]]:
    """A legend of the numbers that occur in any raster, and these numbers."""
    looks: dict[int, LegendClass] = {}
    for raster in rasters:
        for c in raster.legend.classes:
            looks.setdefault(raster.values.get(c.id, c.id), c)
    numbers = sorted(looks)
    if len(numbers) > CODES - 1:
        raise SceneError(f"{rasters[0].scene.path}: and the others hold {len(numbers)} different values; expected at most 255 classes")
    ids = numbers if numbers[0] >= 1 and numbers[-1] < CODES else range(1, len(numbers) + 1)
    classes: list[LegendClass] = []
    for class_id, number in zip(ids, numbers, strict=True):
        taken, name = {c.name for c in classes}, looks[number].name
        plain = f"class_{number}" if number >= 0 else f"class_minus_{-number}"
        classes.append(looks[number].model_copy(update={"id": class_id, "name": plain if name in taken else name}))
    return Legend(name="numbers", classes=tuple(classes)), numbers


def _codes(raster: ClassRaster, numbers: Sequence[int]) -> NDArray[np.uint8]:
    """(256,) uint8, the place from 1 among ``numbers`` of what each class id stands for."""
    places = {number: place for place, number in enumerate(numbers, 1)}
    codes = np.zeros(CODES, np.uint8)
    for c in raster.legend.classes:
        codes[c.id] = places[raster.values.get(c.id, c.id)]
    return codes
