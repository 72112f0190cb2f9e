"""One door to every layout of labelled data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from geoseg.datasets.isprs import potsdam, vaihingen
from geoseg.datasets.labelled import LabelledSet
from geoseg.datasets.plain import scenes
from geoseg.datasets.spacenet import spacenet
from geoseg.errors import OptionsError
from geoseg.legend import Legend

Layout = Literal["set", "scenes", "potsdam", "vaihingen", "spacenet"]
LAYOUTS: tuple[str, ...] = get_args(Layout)


def read_set(
    root: Path, layout: Layout, legend: Legend, bands: tuple[str, ...], *, eroded: bool = False, touched: bool = False
) -> LabelledSet:
    """Find the images and labels of a folder; no image is opened.

    Args:
        root: the folder.
        layout: ``set`` (`LabelledSet.read`), ``scenes`` (`plain.scenes`), ``potsdam``, ``vaihingen`` or ``spacenet``.
        legend: of the model.
        bands: of the model.
        eroded: of the ISPRS layouts, the labels without the pixels at boundaries.
        touched: of SpaceNet, whether all pixels that a footprint touches are building.

    Raises:
        OptionsError: if the folder is not what the layout says, or an option does not belong to it.
        BandsError: if its images do not have the bands.
    """
    if not root.is_dir():
        raise OptionsError(f"{root}: is no folder; expected data in the layout {layout!r}")
    for name, given, owners in (("eroded", eroded, ("potsdam", "vaihingen")), ("touched", touched, ("spacenet",))):
        if given and layout not in owners:
            raise OptionsError(f"{root}: option {name!r} belongs to the layouts {', '.join(owners)}, not to {layout!r}; leave it out")
    match layout:
        case "set":
            return LabelledSet.read(root, legend)
        case "scenes":
            return scenes(root, legend, bands)
        case "spacenet":
            return spacenet(root, legend, bands, touched=touched)
        case "potsdam":
            return potsdam(root, legend, bands, eroded=eroded)
        case "vaihingen":
            return vaihingen(root, legend, bands, eroded=eroded)
