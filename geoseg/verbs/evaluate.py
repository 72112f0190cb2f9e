"""How good a map is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoseg.classes import ClassRaster
from geoseg.confusion import Confusion, mean
from geoseg.errors import OptionsError, SceneError
from geoseg.legend import ISPRS, Legend, LegendClass
from geoseg.manifest import Facts
from geoseg.references import CODES, ClassReference, ColourReference, Reference, dense
from geoseg.scene import Policy, Scene, misfit
from geoseg.window import Window

_SPAN = (512, 8192)  # largest window


@dataclass(frozen=True, slots=True)
class Protocol:
    """A way to score that others can repeat.

    Attributes:
        says: what it does, one sentence.
        legend: whose classes it is about; None for any.
        leaves_out: class that counts as a label and as a prediction, but not in means over classes.
        erode_px: radius of the disc by which the reference's objects are eroded; what is lost is not scored.
    """

    says: str
    legend: Legend | None = None
    leaves_out: str | None = None
    erode_px: int = 0


PROTOCOLS = {
    "plain": Protocol("every labelled pixel counts, and every class of the reference in the means"),
    "isprs-full": Protocol("full reference; all six classes count, means are over five, without clutter", ISPRS, "clutter"),
    "isprs-full-6": Protocol("full reference; six classes, clutter included", ISPRS),
}


def evaluate(
    prediction: str | Path,
    reference: str | Path,
    *,
    protocol: str = "plain",
    legend: str | Path | Legend | None = None,
    nodata: float | None = None,
    reference_nodata: float | None = None,
    policy: Policy | None = None,
    watch: Callable[[str, int, int], None] = lambda *_: None,
) -> Facts:
    """Compare a map with what is true.

    A labelled pixel for which there is no prediction is wrong. The classes of the two rasters are those of ``legend``, else of the
    raster that geoseg made (the prediction, if both), else the numbers that occur in either.

    Args:
        prediction: class raster, as `vectorize` takes it.
        reference: on the same grid: class raster (0 is unlabelled), or RGB picture in the legend's colours (black is unlabelled).
        protocol: one of ``plain``, ``isprs-full``, ``isprs-full-6``.
        legend: classes of both: ``isprs`` or a YAML file; None for what the rasters or the protocol say.
        nodata: number in the prediction that means no prediction, instead of the file's.
        reference_nodata: number in the reference that means no label, instead of the file's.
        policy: which files may be opened.
        watch: called with stage, steps done and steps in all.

    Returns:
        JSON-able: ``protocol``, ``measures``, ``classes`` (by name), ``confusion``, ``warnings``. A measure that is not defined is None.

    Raises:
        SceneError: if a file cannot be used, or the grids differ.
        OptionsError: if the protocol is unknown, a class or colour is not in the legend, or nothing is labelled.
    """
    began = time.monotonic()
    rules = _rules(protocol)
    pair = _describe(prediction, reference, _legend(legend) or rules.legend, (nodata, reference_nodata), policy or Policy())
    confusion = Confusion.empty(CODES, 1 + len(pair.legend))
    height = pair.prediction.scene.shape[0]
    for window, codes, channels in pair.read():
        watch("evaluate", window.row, height)
        confusion += Confusion.of(codes, channels, CODES, 1 + len(pair.legend))
    if not confusion.counts[pair.reference.allowed.any(1)].any():
        raise OptionsError(f"{pair.reference.path}: nothing is labelled, expected pixels with a class; is it the right reference?")
    return {
        "protocol": protocol,
        "protocol_says": rules.says,
        "prediction": pair.prediction.scene.path,
        "reference": pair.reference.path,
        **_figures(confusion, pair.reference.allowed, pair.legend, rules),
        "warnings": list(pair.warnings),
        "seconds": round(time.monotonic() - began, 3),
    }


@dataclass(frozen=True, eq=False)
class _Pair:
    """A prediction and its reference, described.

    Attributes:
        prediction: the map.
        channels: (256,) uint8, channel of each class id of the prediction, from 1; 0 for none.
        reference: the labels.
        legend: the classes, in the order of the channels.
        warnings: what was assumed.
    """

    prediction: ClassRaster
    channels: NDArray[np.uint8]
    reference: Reference
    legend: Legend
    warnings: tuple[str, ...]

    def read(self) -> Iterator[tuple[Window, NDArray[np.uint8], NDArray[np.uint8]]]:
        """Window, label codes and predicted channels (h, w)."""
        whole = Window.of(self.prediction.scene.shape)
        for (window, classes), codes in zip(
            self.prediction.read(whole.split(*_SPAN)), self.reference.read(whole.split(*_SPAN)), strict=True
        ):
            yield window, codes, self.channels[classes]


def _rules(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise OptionsError(f"protocol {name!r} is unknown; choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def _legend(chosen: str | Path | Legend | None) -> Legend | None:
    """A legend by its name or file."""
    if chosen is None or isinstance(chosen, Legend):
        return chosen
    if str(chosen) == ISPRS.name:
        return ISPRS
    if not Path(chosen).is_file():
        raise OptionsError(f"{chosen}: no such legend; give {ISPRS.name!r} or a YAML file with the keys name and classes")
    return Legend.from_yaml(chosen)


def _describe(
    prediction: str | Path, reference: str | Path, legend: Legend | None, nodata: tuple[float | None, float | None], policy: Policy
) -> _Pair:
    found = ClassRaster.describe(prediction, nodata=nodata[0], legend=legend, policy=policy)
    legend = legend or (found.legend if found.own else None)
    colours = _colours(reference, policy)
    if colours is not None:
        legend = legend or ISPRS
        found = ClassRaster.describe(prediction, nodata=nodata[0], legend=legend, policy=policy)
        truth: Reference = ColourReference(colours, legend, dense(len(legend)))
        scene, notes = colours, colours.warnings
    else:
        raster = ClassRaster.describe(reference, nodata=nodata[1], legend=legend, policy=policy)
        if legend is None and raster.own:
            legend = raster.legend
            found = ClassRaster.describe(prediction, nodata=nodata[0], legend=legend, policy=policy)
        legend, numbers = (legend, list(legend.ids)) if legend is not None else _union(found, raster)
        truth = ClassReference(raster, _codes(raster, numbers), dense(len(legend)))
        scene, notes = raster.scene, raster.warnings
    warnings = [f"{path}: {note}" for path, some in ((found.scene.path, found.warnings), (scene.path, notes)) for note in some]
    warnings += _check_grid(found.scene, scene)
    return _Pair(found, _codes(found, numbers if colours is None else list(legend.ids)), truth, legend, tuple(dict.fromkeys(warnings)))


def _colours(path: str | Path, policy: Policy) -> Scene | None:
    """A raster with red, green and blue bytes; None if it is something else."""
    try:
        scene = Scene.describe(path, policy=policy)
    except SceneError:  # a palette; as a class raster it is judged again
        return None
    return scene if len(scene.bands) == 3 and scene.dtype == "uint8" else None


def _check_grid(scene: Scene, other: Scene) -> list[str]:
    """A note if one of two rasters of one size does not say where it is.

    Raises:
        SceneError: if they are not on one grid.
    """
    seen = misfit(scene, other)
    lost = [each.path for each in (scene, other) if each.grid.transform.is_identity and each.grid.crs is None]
    if seen is not None and scene.shape == other.shape and lost:
        return [f"{lost[0]}: has no georeference, but the size of the other; they are taken to lie on each other"]
    if seen is not None:
        raise SceneError(
            f"{other.path}: has {seen}, as {scene.path} has; prediction and reference must lie on one grid: "
            "bring one to the other's with gdalwarp -r near -t_srs, -te and -ts"
        )
    return []


def _union(first: ClassRaster, second: ClassRaster) -> tuple[Legend, list[int]]:
    """A legend of the numbers that occur in either raster, and these numbers."""
    looks: dict[int, LegendClass] = {}
    for raster in (first, second):
        for c in raster.legend.classes:
            looks.setdefault(raster.values.get(c.id, c.id), c)
    numbers = sorted(looks)
    if len(numbers) > 255:
        raise SceneError(f"{first.scene.path} and {second.scene.path}: hold {len(numbers)} different values, expected at most 255 classes")
    ids = numbers if numbers[0] >= 1 and numbers[-1] <= 255 else range(1, len(numbers) + 1)
    classes: list[LegendClass] = []
    for class_id, number in zip(ids, numbers, strict=True):
        known, name = {c.name for c in classes}, looks[number].name
        plain = f"class_{number}" if number >= 0 else f"class_minus_{-number}"
        classes.append(looks[number].model_copy(update={"id": class_id, "name": plain if name in known else name}))
    return Legend(name="numbers", classes=tuple(classes)), numbers


def _codes(raster: ClassRaster, numbers: list[int]) -> NDArray[np.uint8]:
    """(256,) uint8, the place from 1 among ``numbers`` of what each class id stands for."""
    places = {number: place for place, number in enumerate(numbers, 1)}
    codes = np.zeros(CODES, np.uint8)
    for c in raster.legend.classes:
        codes[c.id] = places[raster.values.get(c.id, c.id)]
    return codes


def _figures(confusion: Confusion, allowed: NDArray[np.bool_], legend: Legend, rules: Protocol) -> Facts:
    """Measures over all, measures of each class, and the counts."""
    chosen = np.array([False, *(c.name != rules.leaves_out for c in legend.classes)])
    by_class = {
        "iou": confusion.iou(allowed),
        "f1": confusion.f1(allowed),
        "precision": confusion.precision(allowed),
        "recall": confusion.recall(allowed),
    }
    joint = confusion.joint(allowed)
    measures = {
        "pixel_accuracy": confusion.accuracy(allowed),
        "mean_accuracy": mean(by_class["recall"][chosen]),
        "miou": mean(by_class["iou"][chosen]),
        "frequency_weighted_iou": confusion.frequency_weighted_iou(allowed),
        "mean_f1": mean(by_class["f1"][chosen]),
        "dice": mean(by_class["f1"][chosen]),
        "kappa": confusion.kappa(allowed),
    }
    classes = {
        c.name: {
            "id": c.id,
            "in_means": bool(chosen[channel]),
            "reference_pixels": int(joint[channel].sum()),
            "predicted_pixels": int(confusion.counts[allowed.any(1), channel].sum()),
            **{name: _defined(values[channel]) for name, values in by_class.items()},
        }
        for channel, c in enumerate(legend.classes, 1)
    }
    return {
        "measures": {name: _defined(value) for name, value in measures.items()},
        "classes": classes,
        "labelled_pixels": int(confusion.counts[allowed.any(1)].sum()),
        "unpredicted_pixels": int(confusion.counts[allowed.any(1), 0].sum()),
        "confusion": joint[1:].tolist(),
    }


def _defined(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)
