"""How good a map is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geoseg import report
from geoseg.boundaries import Contours
from geoseg.comparison.pairs import Pair, is_vector, pairs_of
from geoseg.comparison.polygons import matches_of
from geoseg.comparison.rasters import Choice, Compared, Comparison
from geoseg.confusion import Confusion, Reliability
from geoseg.errors import OptionsError
from geoseg.legend import ISPRS, Legend
from geoseg.manifest import Facts, writing
from geoseg.matching import Matches
from geoseg.policy import printable
from geoseg.scene import Policy
from geoseg.scores import LEVEL, PROTOCOLS, Protocol, Scoring, Tally, defined, interval

Watch = Callable[[str, int, int], None]


def evaluate(
    prediction: str | Path,
    reference: str | Path | None = None,
    *,
    protocol: str | None = None,
    legend: str | Path | Legend | None = None,
    codes: str | Path | None = None,
    class_name: str | None = None,
    nodata: float | None = None,
    reference_nodata: float | None = None,
    confidence: str | Path | None = None,
    area: str | Path | None = None,
    boundary_px: int = 3,
    iou: float = 0.5,
    min_area: float | None = None,
    draws: int = 1000,
    seed: int = 0,
    plots: str | Path | None = None,
    policy: Policy | None = None,
    watch: Watch = lambda *_: None,
) -> Facts:
    """Compare a map, or several, with what is true.

    A labelled pixel for which there is no prediction is wrong. The classes of rasters are those of ``legend``, else of the protocol,
    else of a raster that geoseg made, else the numbers that occur. Formulas are in `Confusion`, `Contours`, `band_iou`, `Reliability`
    and `match`; with several scenes, counts are added before ratios are read, and intervals come from a bootstrap over scenes.

    Args:
        prediction: class raster as `vectorize` takes it, or polygons (GeoPackage, GeoJSON, SpaceNet CSV, ...); a folder of such files;
            or, without ``reference``, a CSV file with the columns ``prediction``, ``reference`` and, if wanted, ``confidence``.
        reference: for a raster: a class raster on the same grid (0 is unlabelled), an RGB picture on the same grid in the legend's
            colours (black is unlabelled), or polygons in any CRS, to which the pixels belong whose centre they hold; other pixels are of
            none of the classes drawn. For polygons: polygons. For a folder: a folder with files of the same names, apart from
            ``_classes``, ``_label`` and the like.
        protocol: one of `PROTOCOLS`; None for ``plain``, or ``spacenet`` for polygons.
        legend: classes of prediction and reference: ``isprs`` or a YAML file.
        codes: YAML file with a table ``codes`` (see `LabelledSet`): the reference holds partial labels, codes that stand for sets of
            allowed classes.
        class_name: what polygons are that state no class; of polygons with classes, the ones that are matched; of the protocol ``isbi``,
            the class of the borders.
        nodata: number in predictions that means no prediction, instead of the file's.
        reference_nodata: number in references that means no label, instead of the file's.
        confidence: raster on the prediction's grid, as `predict` writes it; for a folder, the folder with ``NAME_confidence.tif``.
        area: vector file of polygons in any CRS: where the reference is complete. Only pixels count whose centre lies in it, and polygons
            whose centroid does; None for everywhere.
        boundary_px: width of the band of boundary IoU, and how far apart outlines may be for boundary F1, pixels; 0 leaves both out.
        iou: smallest intersection over union of polygons that match.
        min_area: polygons smaller than this do not count, in the square of the unit of the prediction's coordinates; None for 20 pixels
            in a SpaceNet CSV with pixels, as in the challenges, and 0 elsewhere.
        draws: of the bootstrap.
        seed: of the bootstrap.
        plots: folder for ``confusion.png`` and, with confidence, ``reliability.png``.
        policy: which files may be opened.
        watch: called with stage, steps done and steps in all.

    Returns:
        JSON-able: ``protocol``, ``protocol_says``, ``measures``, ``undefined`` (why a measure is None), ``classes`` (by name),
        ``intervals`` (None for one scene), ``confusion`` (reference x prediction) and ``calibration`` (of rasters, else None),
        ``scenes`` (figures of each), ``warnings`` and ``seconds``.

    Raises:
        SceneError: if a file cannot be used, or grids differ.
        OptionsError: if an option or a protocol does not fit, a class or colour is not in the legend, or nothing is labelled.
        OutputError: if plots cannot be written.
    """
    began = time.monotonic()
    pairs = pairs_of(Path(prediction), *(None if path is None else Path(path) for path in (reference, confidence)))
    of_polygons = is_vector(pairs[0].prediction)
    name = protocol or ("spacenet" if of_polygons else "plain")
    rules = _rules(name, of_polygons)
    _check_options(boundary_px, iou, draws)
    where = None if area is None else Path(area)
    if of_polygons:
        options: Facts = {"class_name": class_name, "iou": iou, "min_area": min_area, "area": where}
        facts = _of_polygons(pairs, options, (draws, seed), watch)
    else:
        table = None if codes is None else Path(codes)
        choice = Choice(rules, _legend(legend), table, class_name, nodata, reference_nodata, boundary_px, where, policy or Policy())
        facts = _of_rasters(pairs, choice, (draws, seed), watch)
    said = {"protocol": name, "protocol_says": rules.says, "prediction": printable(str(prediction))}
    facts = {**said, "area": None if area is None else printable(str(area)), **facts}
    if plots is not None:
        _draw(facts, Path(plots))
    return {**facts, "seconds": round(time.monotonic() - began, 3)}


def _rules(name: str, of_polygons: bool) -> Protocol:
    if name not in PROTOCOLS:
        raise OptionsError(f"protocol {name!r} is unknown; choose one of {', '.join(PROTOCOLS)}")
    rules = PROTOCOLS[name]
    if rules.of_polygons != of_polygons:
        about, given = ("rasters", "polygons") if of_polygons else ("polygons", "rasters")
        fitting = ", ".join(key for key, each in PROTOCOLS.items() if each.of_polygons == of_polygons)
        raise OptionsError(f"protocol {name!r} is about {about}, the prediction is of {given}; choose {fitting}")
    return rules


def _check_options(boundary_px: int, iou: float, draws: int) -> None:
    for name, value, sound, expected in (
        ("boundary_px", boundary_px, 0 <= boundary_px <= 64, "0 to 64 pixels"),
        ("iou", iou, 0 < iou <= 1, "more than 0 and at most 1"),
        ("draws", draws, draws >= 1, "at least 1"),
    ):
        if not sound:
            raise OptionsError(f"{name} is {value}; expected {expected}")


def _legend(chosen: str | Path | Legend | None) -> Legend | None:
    """A legend by its name or file."""
    if chosen is None or isinstance(chosen, Legend):
        return chosen
    if str(chosen) == ISPRS.name:
        return ISPRS
    if not Path(chosen).is_file():
        raise OptionsError(f"{chosen}: no such legend; give {ISPRS.name!r} or a YAML file with the keys name and classes")
    return Legend.from_yaml(chosen)


def _of_rasters(pairs: Sequence[Pair], choice: Choice, bootstrap: tuple[int, int], watch: Watch) -> Facts:
    comparison = Comparison.of(pairs, choice)
    scenes, scoring = comparison.scenes, comparison.scoring
    tallies = [comparison.count(scene, watch) for scene in scenes]
    total, labelled = reduce(add, tallies), scoring.allowed.any(1)
    if not total.confusion.counts[labelled].any():
        raise OptionsError(f"{scenes[0].reference.path}: nothing is labelled, expected pixels with a class; is it the right reference?")
    by_class = scoring.by_class(total)
    overall = scoring.overall(total, by_class)
    regions: list[dict[str, float]] = (
        [comparison.regions(scene).named() for scene in scenes] if choice.protocol.of_regions else [{} for _ in scenes]
    )
    figures = {**overall, **_means(regions)}
    joint, sure = total.confusion.joint(scoring.allowed), any(scene.confidence is not None for scene in scenes)
    names = [c.name for c in scoring.legend.classes]
    return {
        "reference": scenes[0].reference.path if len(scenes) == 1 else f"{len(scenes)} files",
        "boundary_px": choice.boundary_px,
        "labelled_pixels": int(total.confusion.counts[labelled].sum()),
        "unpredicted_pixels": int(total.confusion.counts[labelled, 0].sum()),
        "measures": {name: defined(value) for name, value in figures.items()},
        "undefined": _why_not(figures, total, comparison, sure),
        "classes": {
            c.name: {
                "id": c.id,
                "title": c.title,
                "in_means": bool(scoring.in_means[channel]),
                "reference_pixels": int(joint[channel].sum()),
                "predicted_pixels": int(total.confusion.counts[labelled, channel].sum()),
                **{name: defined(values[channel]) for name, values in by_class.items()},
            }
            for channel, c in enumerate(scoring.legend.classes, 1)
        },
        "intervals": _raster_intervals(tallies, scoring, list(overall), list(by_class), bootstrap),
        "confusion": {"rows": names, "columns": ["none", *names], "counts": joint[1:].tolist()},
        "calibration": _calibration(total.reliability) if sure else None,
        "scenes": [_of_scene(scene, tally, scoring, found) for scene, tally, found in zip(scenes, tallies, regions, strict=True)],
        "warnings": list(dict.fromkeys(warning for scene in scenes for warning in scene.warnings)),
    }


def _why_not(overall: Mapping[str, float], total: Tally, comparison: Comparison, sure: bool) -> dict[str, str]:
    """Why each measure that is None is not defined."""
    partial = not total.confusion.dense(comparison.scoring.allowed)
    if comparison.choice.protocol.erode_px:
        outlines = "the protocol does not score the rims of objects"
    elif not comparison.choice.boundary_px:
        outlines = "it was not asked for (boundary_px is 0)"
    elif comparison.outlines is None:
        outlines = "labels allow sets of classes that overlap, which have no outlines"
    else:
        outlines = "no class of the reference has an outline"
    reasons = {
        "frequency_weighted_iou": "labels allow several classes: how common each is in the reference is not known" if partial else "",
        "kappa": "labels allow several classes: agreement by chance is not known" if partial else "chance alone agrees everywhere",
        "mean_boundary_iou": outlines,
        "mean_boundary_f1": outlines,
        "rand_error": "no region of a reference has two pixels",
        "ece": "no confidence is known where a label allows one class alone" if sure else "no confidence raster was given",
    }
    return {name: reasons.get(name) or "no label allows one class alone" for name, value in overall.items() if math.isnan(value)}


def _raster_intervals(
    tallies: Sequence[Tally], scoring: Scoring, overall: list[str], by_class: list[str], bootstrap: tuple[int, int]
) -> Facts | None:
    """Intervals of all figures; None for one scene."""
    if len(tallies) < 2:
        return None
    shapes = [part.shape for part in _parts(tallies[0])]
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]

    def figures(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        confusion, bands, contours, sure = (part.reshape(shape) for part, shape in zip(np.split(counts, ends), shapes, strict=True))
        return scoring.vector(Tally(Confusion(confusion), Confusion(bands), Contours(contours), Reliability(sure)))

    found = _found([np.concatenate([part.ravel() for part in _parts(tally)]) for tally in tallies], figures, bootstrap)
    names, start = [c.name for c in scoring.legend.classes], len(overall)
    columns = {name: found[start + at * len(names) :] for at, name in enumerate(by_class)}
    return {
        **_method(len(tallies), bootstrap),
        "measures": dict(zip(overall, found[:start], strict=True)),
        "classes": {name: {key: values[at] for key, values in columns.items()} for at, name in enumerate(names)},
    }


def _parts(tally: Tally) -> tuple[NDArray[np.int64], ...]:
    return tally.confusion.counts, tally.bands.counts, tally.contours.counts, tally.reliability.counts


def _found(
    scenes: Sequence[NDArray[np.int64]], figures: Callable[[NDArray[np.int64]], NDArray[np.float64]], bootstrap: tuple[int, int]
) -> list[list[float] | None]:
    """Lower and upper end for each figure; None where it is not defined."""
    low, high = interval(scenes, figures, draws=bootstrap[0], seed=bootstrap[1])
    return [None if math.isnan(start) else [start, end] for start, end in zip(low.tolist(), high.tolist(), strict=True)]


def _method(scenes: int, bootstrap: tuple[int, int]) -> Facts:
    draws, seed = bootstrap
    return {"level": LEVEL, "method": "percentile bootstrap over scenes", "scenes": scenes, "draws": draws, "seed": seed}


def _calibration(reliability: Reliability) -> Facts:
    pixels, confidence, accuracy = reliability.bins()
    columns = {"confidence": confidence, "accuracy": accuracy}
    return {
        "ece": defined(reliability.ece()),
        "pixels": pixels.tolist(),
        **{name: [defined(value) for value in values.tolist()] for name, values in columns.items()},
    }


def _means(regions: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over scenes."""
    return {name: float(np.mean([found[name] for found in regions])) for name in regions[0]}


def _of_scene(scene: Compared, tally: Tally, scoring: Scoring, regions: Mapping[str, float]) -> Facts:
    by_class = scoring.by_class(tally)
    return {
        "name": scene.name,
        "prediction": scene.prediction.scene.path,
        "reference": scene.reference.path,
        "labelled_pixels": int(tally.confusion.counts[scoring.allowed.any(1)].sum()),
        "measures": {name: defined(value) for name, value in {**scoring.overall(tally, by_class), **regions}.items()},
        "iou": {c.name: defined(by_class["iou"][channel]) for channel, c in enumerate(scoring.legend.classes, 1)},
    }


def _of_polygons(pairs: Sequence[Pair], options: Facts, bootstrap: tuple[int, int], watch: Watch) -> Facts:
    scenes: dict[str, dict[str, Matches]] = {}
    for number, pair in enumerate(pairs):
        watch("match", number, len(pairs))
        for scene, found in matches_of(pair, **options):
            if scene in scenes:
                raise OptionsError(f"{pair.reference}: has the scene {scene!r}, which another pair has, too; name each scene once")
            scenes[scene] = found
    names = list(dict.fromkeys(name for found in scenes.values() for name in found))
    nothing = Matches(np.zeros(3, np.int64))
    counts = [np.array([found.get(name, nothing).counts for name in names], np.int64).reshape(-1, 3) for found in scenes.values()]
    total = np.sum(counts, axis=0)
    if not total[:, [0, 2]].any():
        raise OptionsError(f"{pairs[0].reference}: holds no polygon that counts, expected some; is it the right reference?")
    measures = dict(zip(_POLYGON_FIGURES, map(defined, _polygon_figures(total).tolist()), strict=False))
    return {
        "reference": printable(str(pairs[0].reference)) if len(pairs) == 1 else f"{len(pairs)} files",
        "iou": options["iou"],
        "measures": measures,
        "undefined": {name: "there are no such polygons" for name, value in measures.items() if value is None},
        "classes": {name: _matched(row) for name, row in zip(names, total, strict=True)},
        "intervals": _polygon_intervals(counts, names, bootstrap),
        "confusion": None,
        "calibration": None,
        "scenes": [{"name": name, "measures": _matched(rows.sum(0))} for name, rows in zip(scenes, counts, strict=True)],
        "warnings": [],
    }


_POLYGON_FIGURES = ("f1", "precision", "recall", "mean_f1")


def _polygon_figures(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """From (K, 3) counts: F1, precision and recall of all, mean F1 of the classes, then F1, precision and recall of each class."""
    rows = [Matches(row) for row in (counts.sum(0), *counts)]
    each = np.array([(row.f1(), row.precision(), row.recall()) for row in rows])
    known = each[1:, 0][~np.isnan(each[1:, 0])]
    return np.array([*each[0], known.mean() if known.size else np.nan, *each[1:].ravel()])


def _matched(row: NDArray[np.int64]) -> Facts:
    counts = dict(zip(("true_positives", "false_positives", "false_negatives"), row.tolist(), strict=True))
    found = Matches(row)
    return {**counts, "f1": defined(found.f1()), "precision": defined(found.precision()), "recall": defined(found.recall())}


def _polygon_intervals(counts: Sequence[NDArray[np.int64]], names: Sequence[str], bootstrap: tuple[int, int]) -> Facts | None:
    if len(counts) < 2:
        return None
    found = _found([rows.ravel() for rows in counts], lambda flat: _polygon_figures(flat.reshape(-1, 3)), bootstrap)
    start, each = len(_POLYGON_FIGURES), _POLYGON_FIGURES[:3]
    rows = {name: found[start + len(each) * at :] for at, name in enumerate(names)}
    return {
        **_method(len(counts), bootstrap),
        "measures": dict(zip(_POLYGON_FIGURES, found, strict=False)),
        "classes": {name: dict(zip(each, row, strict=False)) for name, row in rows.items()},
    }


def _draw(facts: Facts, folder: Path) -> None:
    """Pictures of what was counted.

    Raises:
        OptionsError: if there is nothing to draw.
    """
    if facts["confusion"] is None:
        raise OptionsError("plots are of rasters: polygons have no confusion matrix; leave --plot out")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    titles = [each["title"] for each in facts["classes"].values()]
    subtitle = f"{Path(facts['prediction']).name}, protocol {facts['protocol']}: {facts['protocol_says']}"
    report.write_confusion(folder / "confusion.png", np.array(facts["confusion"]["counts"], np.int64), titles, subtitle=subtitle)
    if facts["calibration"] is not None:
        bins = facts["calibration"]
        accuracy = [math.nan if value is None else value for value in bins["accuracy"]]
        report.write_reliability(folder / "reliability.png", bins["pixels"], accuracy, bins["ece"], subtitle=subtitle)
