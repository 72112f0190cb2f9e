"""Turn words into one call, and the result into a sentence."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import textwrap
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Self

import typer

from geoseg import __version__
from geoseg.errors import GeosegError, OptionsError

if TYPE_CHECKING:
    from collections import Counter

    import rich.progress

    from geoseg.cluster import Cluster
    from geoseg.training.loop import Standing
    from geoseg.verbs.predict import Progress

app = typer.Typer(
    name="geoseg",
    help="Turn large aerial and satellite scenes into maps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
models_app = typer.Typer(help="The models that can be used by name.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models_app, name="models")
networks_app = typer.Typer(help="The architectures that can be trained.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(networks_app, name="networks")


class Taper(StrEnum):
    """Weights of a tile's pixels."""

    flat = "flat"
    hann = "hann"
    linear = "linear"
    gaussian = "gaussian"
    box = "box"


class Precision(StrEnum):
    """Number format of the convolutions."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Augmentation(StrEnum):
    """Test-time augmentation."""

    none = "none"
    flips = "flips"
    d4 = "d4"


class Simplification(StrEnum):
    """How outlines lose points."""

    dp = "dp"
    vw = "vw"


class Format(StrEnum):
    """Format of a vector file."""

    gpkg = "gpkg"
    parquet = "parquet"
    fgb = "fgb"
    geojsonl = "geojsonl"
    pmtiles = "pmtiles"


class ProtocolName(StrEnum):
    """How to score."""

    plain = "plain"
    isprs_eroded = "isprs-eroded"
    isprs_eroded_6 = "isprs-eroded-6"
    isprs_full = "isprs-full"
    isprs_full_6 = "isprs-full-6"
    isbi = "isbi"
    spacenet = "spacenet"


Scene = Annotated[Path, typer.Argument(help="GeoTIFF of any size.", metavar="SCENE.tif")]
Model = Annotated[
    str,
    typer.Option("--model", "-m", help="Name of a model (see `geoseg models list`), its folder, or an ONNX file with Deepness metadata."),
]
Bands = Annotated[str | None, typer.Option(help="Band numbers in the model's order, e.g. 1,2,3. Default: by name.", metavar="N,N,N")]
BBox = Annotated[str | None, typer.Option(help="Only this part: xmin,ymin,xmax,ymax in the scene's CRS.", metavar="X,Y,X,Y")]
Aoi = Annotated[Path | None, typer.Option(help="Only inside the polygons of this vector file, in any CRS.")]
Tile = Annotated[int | None, typer.Option(help="Side of a tile in the model's pixels. Default: the card's.")]
Overlap = Annotated[int | None, typer.Option(help="Pixels that neighbouring tiles share. Default: the card's.")]
AllowVrt = Annotated[bool, typer.Option("--allow-vrt", help="Open a VRT whose sources lie in or below its own folder.")]
Sidecars = Annotated[bool, typer.Option("--sidecars", help="Trust files beside the scene: .aux.xml, .ovr, .msk, .tfw.")]
MaxPixels = Annotated[float | None, typer.Option("--max-pixels", help="Refuse scenes of more pixels than this. Default: 1e11.")]
MinArea = Annotated[
    list[str] | None,
    typer.Option("--min-area-m2", help="Smaller polygons go to a neighbour: one area, or NAME=AREA for each class.", metavar="AREA"),
]
MinHole = Annotated[float, typer.Option("--min-hole-m2", help="Smaller holes are filled.", metavar="AREA")]
Simplify = Annotated[float, typer.Option("--simplify-m", help="How far outlines may move to lose points, in metres.", metavar="METRES")]
SimplifyMethod = Annotated[Simplification, typer.Option("--simplify-method", help="Douglas-Peucker or Visvalingam-Whyatt.")]
Smooth = Annotated[bool, typer.Option("--smooth", help="Pull the stairs of the pixels straight.")]
Regularize = Annotated[
    list[str] | None, typer.Option("--regularize", help="Give outlines of these classes right angles, e.g. building.", metavar="NAME")
]
Split = Annotated[
    list[str] | None, typer.Option("--split", help="Part touching instances of these classes, e.g. car,building.", metavar="NAME")
]
Connectivity = Annotated[int, typer.Option(help="4, or 8: pixels that touch in a corner are one polygon.", metavar="4|8")]
ClusterWords = Annotated[
    str, typer.Option("--cluster", help="here, local, local:N, cuda, tcp://HOST:PORT on this machine, or a YAML file (configs/cluster).")
]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report", help="Dask's page on what each worker did when; it needs bokeh, and its reader the network.", metavar="FILE.html"
    ),
]
Crf = Annotated[bool, typer.Option("--crf", help="Sharpen the classes along image edges: DeepLab's fully connected CRF.")]
SingleLayer = Annotated[bool, typer.Option("--single-layer", help="All classes in one layer of the GeoPackage.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of sentences.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def main() -> NoReturn:
    """Run the command line: a refusal is one line and exit status 2; anything else is a bug and keeps its traceback."""
    _hush_libraries()
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # before torch is loaded: its threads wait politely where cores are shared
    try:
        app(standalone_mode=True)
    except GeosegError as error:
        print(f"geoseg: error: {_printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("geoseg: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _hush_libraries() -> None:
    """Keep what GDAL and libtiff print by themselves off the terminal: it reaches the user in our own words.

    libtiff writes to file descriptor 2 past every handler, so Python's stderr moves to a copy of it and the descriptor
    itself goes nowhere. GEOSEG_DEBUG=1 leaves everything as it was.
    """
    logging.getLogger("rasterio").addHandler(logging.NullHandler())
    terminal = sys.__stderr__
    if os.environ.get("GEOSEG_DEBUG") or terminal is None or sys.stderr is not terminal:
        return
    try:
        copy = os.dup(terminal.fileno())
    except (OSError, ValueError):
        return
    terminal.flush()
    sys.stderr = os.fdopen(copy, "w", buffering=1, encoding=terminal.encoding, errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False) -> None:
    if version:
        typer.echo(f"geoseg {__version__}")
        raise typer.Exit


@app.command()
def predict(
    scene: Scene,
    model: Model = "default",
    out: Annotated[Path | None, typer.Option(help="Folder of the results. Default: beside the scene.")] = None,
    bands: Bands = None,
    bbox: BBox = None,
    aoi: Aoi = None,
    tile: Tile = None,
    overlap: Overlap = None,
    taper: Annotated[Taper, typer.Option(help="Weights of a tile's pixels.")] = Taper.flat,
    tta: Annotated[Augmentation, typer.Option(help="Test-time augmentation.")] = Augmentation.none,
    crf: Crf = False,
    precision: Annotated[Precision, typer.Option(help="auto is bf16 where the hardware multiplies it fast.")] = Precision.auto,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    batch: Annotated[int | None, typer.Option(help="Most tiles of a forward pass. Default: what fits.", min=1)] = None,
    block: Annotated[int | None, typer.Option(help="Largest side of a block in pixels, the unit of resume.", min=1)] = None,
    cluster: ClusterWords = "here",
    report: Report = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    confidence: Annotated[bool, typer.Option("--confidence", help="Also write the confidence as a COG.")] = False,
    scores: Annotated[bool, typer.Option("--scores", help="Also write the scores of all classes as a COG.")] = False,
    polygons: Annotated[bool, typer.Option(help="Write the polygons.")] = True,
    format_: Annotated[Format, typer.Option("--format", help="Of the polygons.")] = Format.gpkg,
    single_layer: SingleLayer = False,
    min_area_m2: MinArea = None,
    min_hole_m2: MinHole = 0.0,
    simplify_m: Simplify = 0.0,
    simplify_method: SimplifyMethod = Simplification.dp,
    smooth: Smooth = False,
    regularize: Regularize = None,
    split: Split = None,
    connectivity: Connectivity = 4,
    quicklook: Annotated[bool, typer.Option(help="Write the picture.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Start over and replace earlier results.")] = False,
    allow_vrt: AllowVrt = False,
    sidecars: Sidecars = False,
    max_pixels: MaxPixels = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Predict a scene: class raster (COG), polygons (GeoPackage), quicklook (PNG) and manifest.

    A killed run goes on when the same command is given again.
    """
    from geoseg.crf import DenseCRF
    from geoseg.engine import Options
    from geoseg.verbs.predict import predict as verb

    options = Options(tile, overlap, taper.value, tta.value, precision.value, scores, DenseCRF() if crf else None)
    with Watcher(silent=quiet or as_json) as watch:
        manifest = verb(
            scene,
            model,
            out=out,
            bands=_integers(bands),
            bbox=_numbers(bbox),
            aoi=aoi,
            options=options,
            device=device,
            batch=batch,
            compile=compile_,
            block=block,
            cluster=_machines(cluster, report),
            confidence=confidence,
            vectors=polygons,
            shaping=_shaping(min_area_m2, min_hole_m2, simplify_m, simplify_method, smooth, regularize, split, connectivity),
            kind=format_.value,
            single_layer=single_layer,
            quicklook=quicklook,
            force=force,
            policy=_policy(allow_vrt, sidecars, max_pixels),
            watch=watch,
        )
    if as_json:
        typer.echo(json.dumps(manifest, ensure_ascii=False))
    elif not quiet:
        _tell(manifest, out or scene.parent)


@app.command()
def vectorize(
    classes: Annotated[Path, typer.Argument(help="GeoTIFF of whole numbers that mean classes.", metavar="CLASSES.tif")],
    out: Annotated[Path, typer.Option(help="File of the result: .gpkg, .parquet, .fgb, .geojsonl or .pmtiles.")],
    format_: Annotated[Format | None, typer.Option("--format", help="Default: what the name of the result says.")] = None,
    single_layer: SingleLayer = False,
    legend: Annotated[
        str | None, typer.Option(help="Names and colours: isprs, or a YAML file. Default: what the raster says.", metavar="FILE.yaml|NAME")
    ] = None,
    band: Annotated[int | None, typer.Option(help="Number of the band, if there are several.", min=1)] = None,
    nodata: Annotated[
        float | None, typer.Option(help="The number that is outside. Default: the raster's nodata value, mask or alpha.")
    ] = None,
    confidence: Annotated[Path | None, typer.Option(help="Raster of the same grid: each polygon gets its mean.")] = None,
    zonal: Annotated[Path | None, typer.Option(help="Raster of the same grid: each polygon gets the mean of each band.")] = None,
    min_area_m2: MinArea = None,
    min_hole_m2: MinHole = 0.0,
    simplify_m: Simplify = 0.0,
    simplify_method: SimplifyMethod = Simplification.dp,
    smooth: Smooth = False,
    regularize: Regularize = None,
    split: Split = None,
    connectivity: Connectivity = 4,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    allow_vrt: AllowVrt = False,
    sidecars: Sidecars = False,
    max_pixels: MaxPixels = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Draw the polygons of any class raster, also of one that another tool made.

    Outside is where the raster says that there is no data. If it states no nodata value, 0 is a class of its own, unless
    the raster is one of geoseg's or a legend is given, which never has a class 0.
    """
    from geoseg.verbs.vectorize import vectorize as verb

    with Watcher(silent=quiet or as_json) as watch:
        facts = verb(
            classes,
            out,
            band=band,
            nodata=nodata,
            legend=legend,
            confidence=confidence,
            zonal=zonal,
            shaping=_shaping(min_area_m2, min_hole_m2, simplify_m, simplify_method, smooth, regularize, split, connectivity),
            single_layer=single_layer,
            kind=None if format_ is None else format_.value,
            force=force,
            policy=_policy(allow_vrt, sidecars, max_pixels),
            watch=watch.show,
        )
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
    elif not quiet:
        for warning in facts["warnings"]:
            typer.echo(f"geoseg: warning: {_printable(warning)}", err=True)
        for name, of_class in facts["classes"].items():
            area = "" if of_class["area_m2"] is None else f"  {of_class['area_m2']:>14,.0f} m²"
            typer.echo(f"  {name:<16}{area}  {of_class['polygons']:>8} polygons")
        typer.echo(f"Wrote {facts['polygons']} polygons to {facts['out']} in {facts['seconds']:.1f} s.")


@app.command()
def batch(
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    scenes: Annotated[
        list[Path] | None,
        typer.Argument(help="GeoTIFFs; or the word status, to see how the batch in --out is.", metavar="SCENES...|status"),
    ] = None,
    listed: Annotated[
        Path | None, typer.Option("--manifest", help="CSV file with a column scene, or STAC items.", metavar="FILE.csv|FILE.json")
    ] = None,
    asset: Annotated[str | None, typer.Option(help="Asset of the STAC items. Default: their only GeoTIFF.", metavar="KEY")] = None,
    glob: Annotated[str | None, typer.Option(help="Pattern of files, e.g. 'flight/**/*.tif'.")] = None,
    model: Model = "default",
    cluster: ClusterWords = "here",
    report: Report = None,
    mosaic: Annotated[Path | None, typer.Option(help="Also one map of all scenes, joined where they touch.", metavar="FILE.gpkg")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try failed and quarantined scenes again.")] = False,
    bands: Bands = None,
    tile: Tile = None,
    overlap: Overlap = None,
    taper: Annotated[Taper, typer.Option(help="Weights of a tile's pixels.")] = Taper.flat,
    tta: Annotated[Augmentation, typer.Option(help="Test-time augmentation.")] = Augmentation.none,
    crf: Crf = False,
    precision: Annotated[Precision, typer.Option(help="auto is bf16 where the hardware multiplies it fast.")] = Precision.auto,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    confidence: Annotated[bool, typer.Option("--confidence", help="Also write the confidence as a COG.")] = False,
    polygons: Annotated[bool, typer.Option(help="Write the polygons.")] = True,
    format_: Annotated[Format, typer.Option("--format", help="Of the polygons.")] = Format.gpkg,
    single_layer: SingleLayer = False,
    min_area_m2: MinArea = None,
    min_hole_m2: MinHole = 0.0,
    simplify_m: Simplify = 0.0,
    simplify_method: SimplifyMethod = Simplification.dp,
    smooth: Smooth = False,
    regularize: Regularize = None,
    split: Split = None,
    connectivity: Connectivity = 4,
    quicklook: Annotated[bool, typer.Option(help="Write the picture.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Start over and replace earlier results.")] = False,
    allow_vrt: AllowVrt = False,
    sidecars: Sidecars = False,
    max_pixels: MaxPixels = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Predict many scenes, here or on a cluster; what is done is not done again, and one bad scene stops nothing.

    Exit status 3 if any scene failed or was quarantined; the reasons are in geoseg-batch.sqlite.
    """
    from geoseg.verbs import batch as verbs

    if scenes == [Path("status")]:
        _tell_batch(verbs.status(out), as_json=as_json, quiet=False)
        return
    if asset is not None and listed is None:
        raise typer.BadParameter("--asset: is about STAC items; give their file with --manifest")
    from geoseg.crf import DenseCRF
    from geoseg.engine import Options

    settings = verbs.Settings(
        model=model,
        bands=_integers(bands),
        options=Options(tile, overlap, taper.value, tta.value, precision.value, crf=DenseCRF() if crf else None),
        device=device,
        confidence=confidence,
        vectors=polygons,
        shaping=_shaping(min_area_m2, min_hole_m2, simplify_m, simplify_method, smooth, regularize, split, connectivity),
        kind=format_.value,
        single_layer=single_layer,
        quicklook=quicklook,
        policy=_policy(allow_vrt, sidecars, max_pixels),
    )
    found = [*(scenes or []), *(verbs.listed(listed, asset) if listed else []), *(verbs.matched(glob) if glob else [])]
    with Watcher(silent=quiet or as_json) as watch:
        verbs.batch(
            found,
            out=out,
            settings=settings,
            cluster=_machines(cluster, report),
            mosaic=mosaic,
            retry=retry,
            force=force,
            watch=watch.scenes,
        )
    rows = verbs.status(out)
    _tell_batch(rows, as_json=as_json, quiet=quiet)
    if any(row["state"] in ("failed", "quarantined") for row in rows):
        raise typer.Exit(3)


def _tell_batch(rows: list[dict[str, Any]], *, as_json: bool, quiet: bool) -> None:
    """How the scenes of a batch are: those that went wrong with their reason, and how many are in which state."""
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    states: dict[str, int] = {}
    for row in rows:
        states[row["state"]] = states.get(row["state"], 0) + 1
        if row["state"] in ("failed", "quarantined"):
            typer.echo(f"geoseg: {row['state']}: {_printable(row['reason'])}", err=True)
    if not quiet:
        typer.echo(f"{len(rows)} scenes: {', '.join(f'{count} {state}' for state, count in sorted(states.items()))}.")


@app.command()
def info(
    scene: Scene,
    model: Model = "default",
    bands: Bands = None,
    allow_vrt: AllowVrt = False,
    sidecars: Sidecars = False,
    max_pixels: MaxPixels = None,
    as_json: AsJson = False,
) -> None:
    """Say what a scene is: grid, bands, no data; and whether a model fits it."""
    from geoseg.verbs.inspect import inspect

    facts = inspect(scene, model, indexes=_integers(bands), policy=_policy(allow_vrt, sidecars, max_pixels))
    _table(facts, as_json)


@app.command()
def plan(
    scene: Scene,
    model: Model = "default",
    bands: Bands = None,
    bbox: BBox = None,
    aoi: Aoi = None,
    tile: Tile = None,
    overlap: Overlap = None,
    crf: Crf = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    allow_vrt: AllowVrt = False,
    sidecars: Sidecars = False,
    max_pixels: MaxPixels = None,
    as_json: AsJson = False,
) -> None:
    """Say what `predict` would do: tiles, blocks, and expected memory, disk and time from a short probe."""
    from geoseg.crf import DenseCRF
    from geoseg.engine import Options
    from geoseg.verbs import inspect

    facts = inspect.estimate(
        scene,
        model,
        bands=_integers(bands),
        bbox=_numbers(bbox),
        aoi=aoi,
        options=Options(tile, overlap, crf=DenseCRF() if crf else None),
        device=device,
        policy=_policy(allow_vrt, sidecars, max_pixels),
    )
    _table(facts, as_json)


@app.command()
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

    logging.getLogger("lightning").setLevel(logging.WARNING)
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


@app.command()
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
            policy=_policy(allow_vrt, sidecars, max_pixels),
            watch=watch.show,
        )
    if told:
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    if json_ is not None:
        write_json(json_, facts)
    if not quiet:
        _tell_scores(facts)


@app.command()
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
        typer.echo(f"geoseg: warning: {_printable(warning)}", err=True)
    typer.echo(f"Protocol {facts['protocol']}: {facts['protocol_says']}.")
    rows = [
        [_words_of(row["measure"]), *(_figure(*each) for each in zip(row["values"], row["intervals"], strict=True))]
        for row in facts["rows"]
    ]
    _columns([["", *facts["runs"]], *rows])


def _tell_scores(facts: dict[str, Any]) -> None:
    """Measures over all, and a line for each class."""
    for warning in facts["warnings"]:
        typer.echo(f"geoseg: warning: {_printable(warning)}", err=True)
    between = facts["intervals"] or {"measures": {}, "classes": {}}
    typer.echo(f"Protocol {facts['protocol']}: {facts['protocol_says']}.")
    measures = {name: value for name, value in facts["measures"].items() if name != "mean_dice"}  # which is the mean F1
    undefined = facts["undefined"]
    _columns(
        [[_words_of(name), _figure(value, between["measures"].get(name)), undefined.get(name, "")] for name, value in measures.items()]
    )
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
    _columns(lines)
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


def _columns(rows: list[list[str]]) -> None:
    """Lines of text in columns."""
    printable = [[_printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in printable) for at in range(len(printable[0]))] if printable else []
    for row in printable:
        typer.echo(
            "  ".join([row[0].ljust(widths[0]), *(cell.ljust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]).rstrip()
        )


@models_app.command("list")
def models_list(as_json: AsJson = False) -> None:
    """List the models that can be used by name."""
    from geoseg.models import cards

    known = {
        name: {
            "version": card.version,
            "architecture": card.architecture,
            "bands": ", ".join(card.bands),
            "resolution_m": card.resolution_m,
            "classes": len(card.legend),
            "license": card.license,
        }
        for name, card in cards().items()
    }
    if as_json:
        typer.echo(json.dumps(known))
        return
    for name, facts in known.items():
        typer.echo(f"{name}  " + "  ".join(f"{key}: {value}" for key, value in facts.items()))


@models_app.command("show")
def models_show(name: Annotated[str, typer.Argument(help="Name of a model, its folder, or an ONNX file.")] = "default") -> None:
    """Print a model's card."""
    from geoseg.models import locate, read

    typer.echo(read(locate(name))[0].to_json(), nl=False)


@models_app.command("export")
def models_export(
    onnx: Annotated[Path, typer.Option(help="File of the result.", metavar="FILE.onnx")],
    name: Annotated[str, typer.Argument(help="Name of a model, or its folder.")] = "default",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model as an ONNX file that the QGIS plugin Deepness runs.

    The file carries the model's facts, takes tiles of the card's size, and is compared with the model before it appears.
    """
    from geoseg.verbs.export import export

    facts = export(name, onnx, force=force)
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    size, same = f"{facts['bytes'] / 1e6:.1f} MB", f"{100 * facts['same']:.3f} %"
    typer.echo(f"Wrote {facts['onnx']} ({size}); its classes are the model's on {same} of a tile of noise.")


@networks_app.command("list")
def networks_list(as_json: AsJson = False) -> None:
    """List the architectures, the oldest first, with their papers and how large they are."""
    from geoseg.verbs.networks import networks

    found = networks()
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    rows = [("network", "year", "parameters", "GFLOP/Mpx", "stride", "reach", "paper"), *map(_network_row, found)]
    for name, year, *numbers, paper in rows:
        counts = "".join(f"{text:>{size}}" for text, size in zip(numbers, (12, 11, 8, 7), strict=True))
        line = f"{name:<{max(len(row[0]) for row in rows)}}  {year}{counts}  {paper}"
        typer.echo(line if width is None or len(line) <= width else f"{line[: width - 1]}…")
    typer.echo(
        "\nWith default options (encoders: ResNet-34; of DPT: ViT-B/16), 3 bands and 21 classes.\n"
        "GFLOP/Mpx: for 10⁶ pixels, in tiles of 512 x 512; of Mask R-CNN with 1000 proposals in each, without masks.\n"
        "Reach: how far a network looks, in pixels; ∞ where an answer depends on the whole tile.\n"
        "Mask R-CNN answers with instances, all others with classes.\n"
        "More on each: geoseg networks show NETWORK"
    )


def _network_row(facts: dict[str, Any]) -> tuple[str, ...]:
    first, *others = facts["authors"].split(", ")
    authors = f"{first} et al." if len(others) > 1 else " and ".join((first, *others))
    return (facts["name"], str(facts["year"]), *_network_numbers(facts), f"{authors}: {facts['paper']}")


def _network_numbers(facts: dict[str, Any]) -> tuple[str, str, str, str]:
    """Parameters, operations, stride and reach as people read them."""
    reach = "∞" if facts["reach"] is None else str(facts["reach"])
    return f"{facts['parameters'] / 1e6:.1f} M", f"{facts['gflop_per_mpx']:,.0f}", str(facts["stride"]), reach


@networks_app.command("show")
def networks_show(
    name: Annotated[str, typer.Argument(help="Name of an architecture, see `geoseg networks list`.", metavar="NETWORK")],
    as_json: AsJson = False,
) -> None:
    """Say what an architecture is, which paper it follows, and what its options are."""
    from geoseg.verbs.networks import described

    facts = described(name)
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False, default=str))
        return
    size = min(shutil.get_terminal_size((100, 24)).columns, 100)
    parameters, operations, stride, reach = _network_numbers(facts)
    typer.echo(f"{facts['name']}: {facts['title']}")
    typer.echo(textwrap.fill(f"{facts['authors']} {facts['year']}: {facts['paper']}. {facts['reference']}", size, break_on_hyphens=False))
    typer.echo(f"{parameters} parameters, {operations} GFLOP/Mpx, stride {stride}, reach {reach}")
    for paragraph in facts["about"]:
        typer.echo(f"\n{textwrap.fill(paragraph, size)}")
    typer.echo("\nOptions:" if facts["options"] else "\nNo options.")
    indent = max(map(len, facts["options"]), default=0) + 4
    for option, words in facts["options"].items():
        text = f"{words['about']} [default: {words['default']}]".strip()
        first = f"  {option}".ljust(indent)
        typer.echo(textwrap.fill(text, size, initial_indent=first, subsequent_indent=" " * indent, break_on_hyphens=False))


def _policy(allow_vrt: bool, sidecars: bool, max_pixels: float | None) -> Any:
    from geoseg.scene import Policy

    return (
        Policy(allow_vrt=allow_vrt, sidecars=sidecars)
        if max_pixels is None
        else Policy(allow_vrt=allow_vrt, sidecars=sidecars, max_pixels=int(max_pixels))
    )


def _shaping(
    min_area_m2: list[str] | None,
    min_hole_m2: float,
    simplify_m: float,
    simplify_method: Simplification,
    smooth: bool,
    regularize: list[str] | None,
    split: list[str] | None,
    connectivity: int,
) -> Any:
    """The words about outlines as one value."""
    from geoseg.polygons import Shaping

    square, parted = (tuple(name.strip() for text in texts or () for name in text.split(",")) for texts in (regularize, split))
    least = _areas(min_area_m2 or [])
    if connectivity not in (4, 8):
        raise typer.BadParameter(f"--connectivity {connectivity}: is neither 4 nor 8")
    return Shaping(least, min_hole_m2, simplify_m, simplify_method.value, smooth, square, parted, 8 if connectivity == 8 else 4)


def _areas(texts: list[str]) -> float | dict[str, float]:
    """One area, or one for each class name."""
    words = [word.strip().rpartition("=") for text in texts for word in text.split(",")]
    try:
        areas = {name.strip(): float(area) for name, _, area in words}
    except ValueError as error:
        raise typer.BadParameter(f"--min-area-m2 {','.join(texts)}: is neither an area nor a list of NAME=AREA") from error
    if "" not in areas:
        return areas or 0.0
    if len(words) > 1:
        raise typer.BadParameter(f"--min-area-m2 {','.join(texts)}: give one area, or NAME=AREA for each class")
    return areas[""]


def _numbers(text: str | None) -> Any:
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list of numbers with commas between") from error
    return numbers


def _integers(text: str | None) -> tuple[int, ...] | None:
    numbers = _numbers(text)
    if numbers is None:
        return None
    if any(number != int(number) for number in numbers):
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers")
    return tuple(int(number) for number in numbers)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


class Watcher:
    """A bar on a terminal, a plain line every few seconds elsewhere, nothing if silent; with what geoseg's log says above it."""

    EVERY_S = 5.0

    def __init__(self, *, silent: bool) -> None:
        self._silent, self._bar = silent, _bar() if sys.stderr.isatty() and not silent else None
        self._began, self._told, self._stage = time.monotonic(), 0.0, ""
        self._before: int | None = None
        self._log = logging.Handler(logging.INFO)
        self._log.emit = lambda record: self.say(record.getMessage())  # type: ignore[method-assign]

    def __enter__(self) -> Self:
        if not self._silent:
            logging.getLogger("geoseg").addHandler(self._log)
            logging.getLogger("geoseg").setLevel(logging.INFO)
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task("starting", total=None, rate="")
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("geoseg").removeHandler(self._log)
        if self._bar is not None:
            self._bar.stop()

    def say(self, words: str) -> None:
        """Print a line of its own."""
        if self._bar is not None:
            self._bar.console.print(f"geoseg: {words}", markup=False, highlight=False)
        else:
            typer.echo(f"geoseg: {words}", err=True)

    def __call__(self, progress: Progress) -> None:
        """Show how far a prediction is, and in its first stage how fast."""
        seconds = self._in_stage(progress.stage)
        rate = f"{progress.done / seconds:.1f} tiles/s, {progress.mpx / seconds:.2f} Mpx/s"
        timed = progress.stage == "predict" and progress.done
        self.show(progress.stage, progress.done, progress.total, rate if timed else "", seconds / progress.done if timed else None)

    def scenes(self, count: Counter[str], mpx: float) -> None:
        """Show how far a batch is, and how fast since it began this time."""
        seconds, ended = self._in_stage("scenes"), count.total() - count["waiting"] - count["running"]
        self._before = ended if self._before is None else self._before
        states = [f"{count[state]} {state}" for state in ("running", "failed", "quarantined") if count[state]]
        fresh = ended - self._before
        rate = ", ".join([*states, *([f"{mpx / seconds:.2f} Mpx/s"] if mpx else [])])
        self.show("scenes", ended, count.total(), rate, seconds / fresh if fresh else None)

    def training(self, standing: Standing) -> None:
        """Show on a terminal how far a training is; elsewhere its log says enough."""
        if self._bar is not None:
            words = [f"step {standing.step}", f"{standing.steps_s:.1f} steps/s", *([standing.figure] if standing.figure else [])]
            self._bar.update(self._bar.task_ids[0], description="train", completed=standing.share, total=1, rate=", ".join(words))

    def show(self, stage: str, done: int, total: int, rate: str = "", each_s: float | None = None) -> None:
        """Show how far a stage is; with the seconds that each step takes, how long it is to go, too."""
        self._in_stage(stage)
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=stage, completed=done, total=total, rate=rate)
        elif not self._silent and now - self._told >= self.EVERY_S:
            self._told = now
            left = "" if each_s is None else f", {each_s * (total - done):.0f} s left"
            typer.echo(f"geoseg: {stage} {done} of {total}{f', {rate}' if rate else ''}{left}", err=True)

    def _in_stage(self, stage: str) -> float:
        """Seconds since the stage began, which may be now."""
        now = time.monotonic()
        if stage != self._stage:
            self._began, self._stage, self._told = now, stage, 0.0
        return max(now - self._began, 1e-9)


def _machines(words: str, report: Path | None) -> Cluster:
    """The cluster that a user names."""
    from geoseg.cluster import Cluster

    cluster = Cluster.of(words)
    if report is None:
        return cluster
    if cluster.kind == "here":
        raise OptionsError("--report is about the workers of a cluster, and there is none; name one with --cluster")
    return cluster.model_copy(update={"report": report})


def _bar() -> rich.progress.Progress:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    share = TextColumn("{task.percentage:>3.0f} %")
    columns = (TextColumn("{task.description}"), BarColumn(), share, TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    return Bar(*columns, console=Console(stderr=True), transient=True)


def _tell(manifest: dict[str, Any], folder: Path) -> None:
    """The result as sentences."""
    if manifest["already_done"]:
        typer.echo(f"Already finished; the results are in {folder} (use --force to make them again).")
        return
    for warning in manifest["warnings"]:
        typer.echo(f"geoseg: warning: {_printable(warning)}", err=True)
    total = sum(facts["pixels"] for facts in manifest["classes"].values()) or 1
    for name, facts in manifest["classes"].items():
        area = "" if facts["area_m2"] is None else f"  {facts['area_m2']:>14,.0f} m²"
        count = "" if facts["polygons"] is None else f"  {facts['polygons']:>8} polygons"
        share = f" {100 * facts['pixels'] / total:5.1f} %" if "nodata_pixels" in manifest else ""  # instances are no shares of anything
        typer.echo(f"  {name:<16}{share}{area}{count}")
    typer.echo(f"Wrote {', '.join(manifest['outputs'])} to {folder} in {sum(manifest['seconds'].values()):.1f} s.")


def _table(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        typer.echo(f"{key.replace('_', ' '):<{width}}  {_printable(_words(value))}")


def _words(value: object) -> str:
    """A fact as people read it."""
    if isinstance(value, dict):
        return " ".join(f"{key} {_words(part)}" for key, part in value.items() if part is not None)
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "none"
    return "none" if value in (None, "") else str(value)


if __name__ == "__main__":
    main()
