"""A folder of one's own, described by a ``scenes.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from geoseg.datasets.labelled import LabelledSet, allowed_by, matches, number_sets
from geoseg.datasets.rasters import ClassLabels, ColourLabels
from geoseg.datasets.scenes import LabelledScene, Labels, Layer
from geoseg.datasets.vectors import VectorLabels
from geoseg.errors import OptionsError
from geoseg.legend import Legend
from geoseg.options import parse, read_table

SCENES_NAME = "scenes.yaml"


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RasterLabels(_Table):
    """Labels that are rasters, one an image and as large.

    Attributes:
        path: of the raster of an image, with ``{name}`` for the image's name without its ending.
        colours: whether its three bands are the legend's colours, instead of one band of numbers.
    """

    path: str
    colours: bool = False


class PolygonLabels(_Table):
    """Labels that are polygons, boxes or points.

    Attributes:
        path: of the vector file: one for all images, or with ``{name}`` one for each; a CSV has the columns ``x`` and ``y`` in the
            images' CRS, ``lon`` and ``lat`` in degrees, or ``WKT``.
        layer: of the file; null for its first.
        column: that says the class; null if all polygons are of one.
        rule: whether a pixel belongs to the polygon in which its ``centre`` lies, or to any by which it is ``touched``.
        pixels: whether the coordinates are columns and rows of the image.
        radius_m: of the disks, in metres, that points stand for; null if there are no points.
        outside: classes that may be outside all polygons; none for unlabelled.
        outside_m: how far from a polygon, in metres, ``outside`` holds, beyond which nothing is known; null for everywhere.
    """

    path: str
    layer: str | None = None
    column: str | None = None
    rule: Literal["centre", "touched"] = "centre"
    pixels: bool = False
    radius_m: float | None = Field(default=None, gt=0)
    outside: tuple[str, ...] = ()
    outside_m: float | None = Field(default=None, gt=0)


class ScenesFile(_Table):
    """What ``scenes.yaml`` says; paths start at its folder.

    Attributes:
        title: one line.
        licence: of imagery and labels.
        attribution: to reproduce in model cards.
        images: pattern of GeoTIFFs, e.g. ``ortho/*.tif``.
        rasters: labels, if they are rasters.
        polygons: labels, if they are polygons.
        classes: for each number of the raster, or value of the column, the classes it allows. Not for colours; a single list for polygons
            without a column.
        split: patterns of image names for each part; what matches none is ``train``.
        gsd_m: metres on the ground per pixel, where the files do not say it.
        indexes: numbers of the model's bands in the files; null to find them by name.
    """

    title: str
    licence: str
    attribution: str
    images: str
    rasters: RasterLabels | None = None
    polygons: PolygonLabels | None = None
    classes: dict[int | str, tuple[str, ...]] | tuple[str, ...] = {}
    split: dict[str, tuple[str, ...]] = {}
    gsd_m: float | None = Field(default=None, gt=0)
    indexes: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> ScenesFile:
        if (self.rasters is None) == (self.polygons is None):
            raise ValueError("state either rasters or polygons")
        alone = self.polygons is not None and self.polygons.column is None
        if alone != isinstance(self.classes, tuple):
            raise ValueError(
                "classes is a list for polygons without a column, else a table of values" if alone else "classes must be a table of values"
            )
        if not self.classes and not (self.rasters and self.rasters.colours):
            raise ValueError("classes is empty: say which classes the numbers, or the values of the column, allow")
        return self


def scenes(root: Path, legend: Legend, bands: tuple[str, ...]) -> LabelledSet:
    """Images and labels of a folder with a ``scenes.yaml``.

    Args:
        root: the folder.
        legend: of the model.
        bands: of the model.

    Returns:
        The set; its images are named as their files.

    Raises:
        OptionsError: if the description is missing or wrong, names a class that the legend lacks, or no image or not its labels are there.
    """
    where = root / SCENES_NAME
    said = parse(ScenesFile, read_table(where), str(where))
    paths = sorted(path for path in root.glob(said.images) if path.is_file())
    if not paths:
        seen = ", ".join(sorted(path.name for path in root.iterdir())[:6])
        raise OptionsError(f"{where}: no file matches images: {said.images}; the folder has {seen}")
    codes, table, outside = _codes(said, legend, where)
    shared: dict[Path, Labels] = {}
    found = {}
    for path in paths:
        labels = _labels(said, root, path.stem, codes, outside, legend, shared)
        if path.stem in found:
            raise OptionsError(f"{where}: two images are named {path.stem!r}, expected unique names")
        found[path.stem] = LabelledScene(path.stem, (Layer(path, bands, said.indexes),), labels, said.gsd_m)
    split: dict[str, list[str]] = {"train": [], **{part: [] for part in said.split}}
    for name in found:
        split[next((part for part, patterns in said.split.items() if matches(name, patterns)), "train")].append(name)
    parts = {part: tuple(names) for part, names in split.items()}
    return LabelledSet(root.name, said.title, said.licence, said.attribution, allowed_by(table, legend, where), parts, found)


def _codes(
    said: ScenesFile, legend: Legend, where: Path
) -> tuple[Mapping[int | str | None, int], Mapping[int, Mapping[str, tuple[str, ...]]], int]:
    """Code of each value, the table of what each code allows, and the code outside."""
    if said.rasters and said.rasters.colours:
        return {}, {c.id: {"allowed": (c.name,)} for c in legend.classes}, 0
    values: list[tuple[int | str | None, tuple[str, ...]]] = (
        [(None, said.classes)] if isinstance(said.classes, tuple) else [*said.classes.items()]
    )
    outside = said.polygons.outside if said.polygons else ()
    numbers = number_sets([*(classes for _, classes in values), outside], legend, where)
    table = {number: {"allowed": tuple(classes)} for classes, number in numbers.items() if number}
    return {value: numbers[frozenset(classes)] for value, classes in values}, table, numbers[frozenset(outside)]


def _labels(
    said: ScenesFile,
    root: Path,
    name: str,
    codes: Mapping[int | str | None, int],
    outside: int,
    legend: Legend,
    shared: dict[Path, Labels],
) -> Labels:
    stated = said.rasters or said.polygons
    assert stated is not None
    path = root / stated.path.format(name=name)
    if not path.is_file():
        raise OptionsError(f"{root / SCENES_NAME}: image {name!r} has no labels, {path} is not there")
    if path not in shared:
        shared[path] = _described(said, path, codes, outside, legend)
    return shared[path]


def _described(said: ScenesFile, path: Path, codes: Mapping[int | str | None, int], outside: int, legend: Legend) -> Labels:
    if said.rasters and said.rasters.colours:
        return ColourLabels(path, legend)
    if said.rasters:
        return ClassLabels(path, {int(value): code for value, code in codes.items() if value is not None})
    drawn = said.polygons
    assert drawn is not None
    return VectorLabels(
        path,
        outside,
        {None if value is None else str(value): code for value, code in codes.items()},
        drawn.column,
        drawn.layer,
        touched=drawn.rule == "touched",
        in_pixels=drawn.pixels,
        radius_m=drawn.radius_m,
        outside_m=drawn.outside_m,
    )
