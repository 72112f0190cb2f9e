"""The commands that look at scenes and map them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from geoseg.cli.telling import Watcher, printable, table
from geoseg.cli.words import (
    AllowVrt,
    Aoi,
    AsJson,
    Augmentation,
    Bands,
    BBox,
    ClusterWords,
    Connectivity,
    Crf,
    Format,
    MaxPixels,
    MinArea,
    MinHole,
    Model,
    Overlap,
    Precision,
    Quiet,
    Regularize,
    Report,
    Scene,
    Sidecars,
    Simplification,
    Simplify,
    SimplifyMethod,
    SingleLayer,
    Smooth,
    Split,
    Taper,
    Tile,
    cluster_of,
    integers_of,
    numbers_of,
    policy_of,
    shaping_of,
)


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
            bands=integers_of(bands),
            bbox=numbers_of(bbox),
            aoi=aoi,
            options=options,
            device=device,
            batch=batch,
            compile=compile_,
            block=block,
            cluster=cluster_of(cluster, report),
            confidence=confidence,
            vectors=polygons,
            shaping=shaping_of(min_area_m2, min_hole_m2, simplify_m, simplify_method, smooth, regularize, split, connectivity),
            kind=format_.value,
            single_layer=single_layer,
            quicklook=quicklook,
            force=force,
            policy=policy_of(allow_vrt, sidecars, max_pixels),
            watch=watch,
        )
    if as_json:
        typer.echo(json.dumps(manifest, ensure_ascii=False))
    elif not quiet:
        _tell(manifest, out or scene.parent)


def _tell(manifest: dict[str, Any], folder: Path) -> None:
    """The result as sentences."""
    if manifest["already_done"]:
        typer.echo(f"Already finished; the results are in {folder} (use --force to make them again).")
        return
    for warning in manifest["warnings"]:
        typer.echo(f"geoseg: warning: {printable(warning)}", err=True)
    total = sum(facts["pixels"] for facts in manifest["classes"].values()) or 1
    for name, facts in manifest["classes"].items():
        area = "" if facts["area_m2"] is None else f"  {facts['area_m2']:>14,.0f} m²"
        count = "" if facts["polygons"] is None else f"  {facts['polygons']:>8} polygons"
        share = f" {100 * facts['pixels'] / total:5.1f} %" if "nodata_pixels" in manifest else ""  # instances are no shares of anything
        typer.echo(f"  {name:<16}{share}{area}{count}")
    typer.echo(f"Wrote {', '.join(manifest['outputs'])} to {folder} in {sum(manifest['seconds'].values()):.1f} s.")


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
            shaping=shaping_of(min_area_m2, min_hole_m2, simplify_m, simplify_method, smooth, regularize, split, connectivity),
            single_layer=single_layer,
            kind=None if format_ is None else format_.value,
            force=force,
            policy=policy_of(allow_vrt, sidecars, max_pixels),
            watch=watch.show,
        )
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
    elif not quiet:
        for warning in facts["warnings"]:
            typer.echo(f"geoseg: warning: {printable(warning)}", err=True)
        for name, of_class in facts["classes"].items():
            area = "" if of_class["area_m2"] is None else f"  {of_class['area_m2']:>14,.0f} m²"
            typer.echo(f"  {name:<16}{area}  {of_class['polygons']:>8} polygons")
        typer.echo(f"Wrote {facts['polygons']} polygons to {facts['out']} in {facts['seconds']:.1f} s.")


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
        bands=integers_of(bands),
        options=Options(tile, overlap, taper.value, tta.value, precision.value, crf=DenseCRF() if crf else None),
        device=device,
        confidence=confidence,
        vectors=polygons,
        shaping=shaping_of(min_area_m2, min_hole_m2, simplify_m, simplify_method, smooth, regularize, split, connectivity),
        kind=format_.value,
        single_layer=single_layer,
        quicklook=quicklook,
        policy=policy_of(allow_vrt, sidecars, max_pixels),
    )
    found = [*(scenes or []), *(verbs.listed(listed, asset) if listed else []), *(verbs.matched(glob) if glob else [])]
    with Watcher(silent=quiet or as_json) as watch:
        verbs.batch(
            found,
            out=out,
            settings=settings,
            cluster=cluster_of(cluster, report),
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
            typer.echo(f"geoseg: {row['state']}: {printable(row['reason'])}", err=True)
    if not quiet:
        typer.echo(f"{len(rows)} scenes: {', '.join(f'{count} {state}' for state, count in sorted(states.items()))}.")


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

    facts = inspect(scene, model, indexes=integers_of(bands), policy=policy_of(allow_vrt, sidecars, max_pixels))
    table(facts, as_json)


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
        bands=integers_of(bands),
        bbox=numbers_of(bbox),
        aoi=aoi,
        options=Options(tile, overlap, crf=DenseCRF() if crf else None),
        device=device,
        policy=policy_of(allow_vrt, sidecars, max_pixels),
    )
    table(facts, as_json)
