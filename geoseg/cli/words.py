"""The words of the command line, and what they mean."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geoseg.errors import OptionsError

if TYPE_CHECKING:
    from geoseg.cluster import Cluster


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


def policy_of(allow_vrt: bool, sidecars: bool, max_pixels: float | None) -> Any:
    """What may be opened."""
    from geoseg.scene import Policy

    return (
        Policy(allow_vrt=allow_vrt, sidecars=sidecars)
        if max_pixels is None
        else Policy(allow_vrt=allow_vrt, sidecars=sidecars, max_pixels=int(max_pixels))
    )


def shaping_of(
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


def numbers_of(text: str | None) -> Any:
    """Numbers with commas between."""
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list of numbers with commas between") from error
    return numbers


def integers_of(text: str | None) -> tuple[int, ...] | None:
    """Whole numbers with commas between."""
    numbers = numbers_of(text)
    if numbers is None:
        return None
    if any(number != int(number) for number in numbers):
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers")
    return tuple(int(number) for number in numbers)


def cluster_of(words: str, report: Path | None) -> Cluster:
    """The cluster that a user names."""
    from geoseg.cluster import Cluster

    cluster = Cluster.of(words)
    if report is None:
        return cluster
    if cluster.kind == "here":
        raise OptionsError("--report is about the workers of a cluster, and there is none; name one with --cluster")
    return cluster.model_copy(update={"report": report})
