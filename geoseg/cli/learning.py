"""The commands that make models, and judge maps."""

from __future__ import annotations

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from geoseg.cli.telling import Watcher, columns, printable
from geoseg.cli.words import AllowVrt, AsJson, MaxPixels, ProtocolName, Quiet, Sidecars, policy_of


def train(
    config: Annotated[Path, typer.Argument(help="Training recipe.", metavar="CONFIG.yaml")],
    out: Annotated[Path, typer.Option(help="Folder of the model that is made.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the data sets. Default: the recipe's.")] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Model to begin with: a name or a folder. Its classes and bands may be others.", metavar="MODEL", show_default=False
        ),
    ] = None,
    encoder_weights: Annotated[
        str | None,
        typer.Option(
            help="Pretrained encoder: a .pth or .safetensors file, or e.g. imagenet, from a hub.", metavar="PATH", show_default=False
        ),
    ] = None,
    fold: Annotated[int | None, typer.Option(help="Which of the recipe's folds to hold out, from 1.", min=1)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only draw some chips with their labels into chips.png.")] = False,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Only try learning rates, and draw what the loss does into learning_rate.png.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Start over and replace earlier results.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train a model that `predict` takes unchanged.

    A killed run goes on when the same command is given again.
    """
    from geoseg.verbs.train import find_learning_rate, preview
    from geoseg.verbs.train import train as verb

    for speaker in ("lightning", "lightning.pytorch"):
        logging.getLogger(speaker).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\.")  # of its own parts; what a user can mend, we say
    given: dict[str, Any] = {"init": init, "encoder_weights": encoder_weights, "fold": fold}
    if dry_run:
        typer.echo(f"{preview(config, out, data=data, **given)}: look at it, nothing was trained")
        return
    if find_lr:
        rate, curve = find_learning_rate(config, out, data=data, **given)
        typer.echo(f"The loss falls most steeply at a learning rate of {rate:.2g}; see {curve}. Nothing was trained.")
        return
    helps = os.environ.get("LOCAL_RANK", "0") != "0"  # a process that Lightning started for a device that is not the first
    with Watcher(silent=quiet or helps) as watch:
        verb(config, out, data=data, force=force, watch=watch.training, **given)


def evaluate(
    prediction: Annotated[
        Path, typer.Argument(help="Class raster, polygons, or a folder of them; or a CSV file that lists pairs.", metavar="PRED")
    ],
    reference: Annotated[
        Path | None, typer.Argument(help="Class raster, RGB picture in the legend's colours, or polygons; or a folder.", metavar="REF")
    ] = None,
    protocol: Annotated[ProtocolName | None, typer.Option(help="Default: plain, for polygons spacenet.")] = None,
    legend: Annotated[
        str | None,
        typer.Option(help="Classes of both: isprs, or a YAML file. Default: what geoseg's rasters say.", metavar="FILE.yaml|NAME"),
    ] = None,
    codes: Annotated[
        Path | None,
        typer.Option(help="The reference holds partial labels; this file says which classes each code allows.", metavar="SET.yaml"),
    ] = None,
    class_: Annotated[
        str | None, typer.Option("--class", help="What polygons are that state no class; of isbi, the borders.", metavar="NAME")
    ] = None,
    nodata: Annotated[float | None, typer.Option(help="The number that means no prediction. Default: what the file says.")] = None,
    reference_nodata: Annotated[
        float | None, typer.Option(help="The number that means no label. Default: what the file says, or 0.")
    ] = None,
    confidence: Annotated[Path | None, typer.Option(help="Raster of the confidence, or a folder of NAME_confidence.tif.")] = None,
    area: Annotated[Path | None, typer.Option(help="Vector file: where the reference is complete. Default: everywhere.")] = None,
    boundary_px: Annotated[int, typer.Option(help="Width of the rims that boundary IoU and F1 look at; 0 for none.", min=0)] = 3,
    iou: Annotated[float, typer.Option(help="From which IoU on two polygons match.")] = 0.5,
    min_area: Annotated[
        float | None, typer.Option(help="Smaller polygons do not count. Default: 20 where coordinates are pixels, else 0.")
    ] = None,
    draws: Annotated[int, typer.Option(help="Of the bootstrap over scenes.", min=1)] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap over scenes.", min=0)] = 0,
    plot: Annotated[Path | None, typer.Option(help="Folder for pictures: confusion matrix and reliability diagram.")] = None,
    json_: Annotated[
        Path | None, typer.Option("--json", help="Write all figures to this file; - for the terminal.", metavar="FILE|-")
    ] = None,
    allow_vrt: AllowVrt = False,
    sidecars: Sidecars = False,
    max_pixels: MaxPixels = None,
    quiet: Quiet = False,
) -> None:
    """Say how good a map is: pixels, classes, outlines, polygons and confidence against what is true.

    Protocols: plain counts every labelled pixel. isprs-eroded leaves out the rims of the reference's objects (3 pixels) and takes
    means over five classes, without clutter; isprs-full scores all pixels; -6 includes clutter. isbi adds the pixel, Rand and warping
    error of the regions between borders. spacenet matches polygons.
    """
    from geoseg.manifest import write_json
    from geoseg.verbs.evaluate import evaluate as verb

    told = str(json_) == "-"
    with Watcher(silent=quiet or told) as watch:
        facts = verb(
            prediction,
            reference,
            protocol=None if protocol is None else protocol.value,
            legend=legend,
            codes=codes,
            class_name=class_,
            nodata=nodata,
            reference_nodata=reference_nodata,
            confidence=confidence,
            area=area,
            boundary_px=boundary_px,
            iou=iou,
            min_area=min_area,
            draws=draws,
            seed=seed,
            plots=plot,
            policy=policy_of(allow_vrt, sidecars, max_pixels),
            watch=watch.show,
        )
    if told:
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    if json_ is not None:
        write_json(json_, facts)
    if not quiet:
        _tell_scores(facts)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="JSON files of `geoseg evaluate --json`, under one protocol.", metavar="RUN.json...")],
    as_json: AsJson = False,
) -> None:
    """Put the scores of several runs beside each other, with their intervals."""
    from geoseg.verbs.compare import compare as verb

    facts = verb(runs)
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    for warning in facts["warnings"]:
        typer.echo(f"geoseg: warning: {printable(warning)}", err=True)
    typer.echo(f"Protocol {facts['protocol']}: {facts['protocol_says']}.")
    rows = [
        [_words_of(row["measure"]), *(_figure(*each) for each in zip(row["values"], row["intervals"], strict=True))]
        for row in facts["rows"]
    ]
    columns([["", *facts["runs"]], *rows])


def _tell_scores(facts: dict[str, Any]) -> None:
    """Measures over all, and a line for each class."""
    for warning in facts["warnings"]:
        typer.echo(f"geoseg: warning: {printable(warning)}", err=True)
    between = facts["intervals"] or {"measures": {}, "classes": {}}
    typer.echo(f"Protocol {facts['protocol']}: {facts['protocol_says']}.")
    measures = {name: value for name, value in facts["measures"].items() if name != "mean_dice"}  # which is the mean F1
    undefined = facts["undefined"]
    columns([[_words_of(name), _figure(value, between["measures"].get(name)), undefined.get(name, "")] for name, value in measures.items()])
    typer.echo("")
    classes: dict[str, dict[str, Any]] = facts["classes"]
    known = {key for of_class in classes.values() for key, value in of_class.items() if value is not None}
    shown = [key for key in ("iou", "f1", "precision", "recall", "boundary_iou", "boundary_f1") if key in known]
    first = next(iter(classes.values()))
    counts = [key for key in first if key.endswith(("_pixels", "_positives", "_negatives"))]
    lines = [["class", *map(_words_of, (*shown, *counts))]]
    for name, of_class in classes.items():
        its = between["classes"].get(name, {})
        title = name if of_class.get("in_means", True) else f"{name} (not in means)"
        figures = [_figure(of_class[key], its.get(key) if key in ("iou", "f1") else None) for key in shown]
        lines.append([title, *figures, *(f"{of_class[key]:,}" for key in counts)])
    columns(lines)
    if facts["intervals"] is not None:
        typer.echo(
            f"In brackets: {between['level']:.0%} intervals, {between['method']} ({between['scenes']} scenes, {between['draws']} draws)."
        )
    pixels = f", {facts['labelled_pixels']:,} labelled pixels" if "labelled_pixels" in facts else ""
    typer.echo(f"Scored {len(facts['scenes'])} scene{'s' if len(facts['scenes']) > 1 else ''}{pixels} in {facts['seconds']:.1f} s.")


def _words_of(key: str) -> str:
    """The key of a figure as people read it."""
    return key.replace("_", " ")


def _figure(value: float | None, between: list[float] | None) -> str:
    """A score with its interval."""
    if value is None:
        return "-"
    return f"{value:.4f}" if between is None else f"{value:.4f} [{between[0]:.3f}, {between[1]:.3f}]"
