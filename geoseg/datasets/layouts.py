"""One door to every layout of labelled data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from geoseg.datasets.isprs import potsdam, vaihingen
from geoseg.datasets.labelled import LabelledSet
from geoseg.datasets.landcover import landcoverai, loveda, openearthmap
from geoseg.datasets.plain import scenes
from geoseg.datasets.spacenet import spacenet
from geoseg.errors import OptionsError
from geoseg.legend import Legend

Layout = Literal["set", "scenes", "potsdam", "vaihingen", "spacenet", "loveda", "landcoverai", "openearthmap"]
LAYOUTS: tuple[str, ...] = get_args(Layout)


def read_set(
    root: Path,
    layout: Layout,
    legend: Legend,
    bands: tuple[str, ...],
    *,
    eroded: bool = False,
    touched: bool = False,
    border_m: float = 0.0,
    contact_m: float = 0.0,
) -> LabelledSet:
    """Find the images and labels of a folder; no image is opened.

    Args:
        root: the folder.
        layout: ``set`` (`LabelledSet.read`), ``scenes`` (`plain.scenes`), ``potsdam``, ``vaihingen``, ``spacenet``, ``loveda``,
            ``landcoverai`` or ``openearthmap``.
        legend: of the model.
        bands: of the model.
        eroded: of the ISPRS layouts, the labels without the pixels at boundaries.
        touched: of SpaceNet, whether all pixels that a footprint touches are building.
        border_m: of SpaceNet, width of the rim of footprints that is of class ``border``; 0 for none.
        contact_m: of SpaceNet, footprints nearer than this have class ``contact`` between them; 0 for none.

    Raises:
        OptionsError: if the folder is not what the layout says, or an option does not belong to it.
        BandsError: if its images do not have the bands.
    """
    if not root.is_dir():
        raise OptionsError(f"{root}: is no folder; expected data in the layout {layout!r}")
    isprs, buildings = ("potsdam", "vaihingen"), ("spacenet",)
    given = {
        "eroded": (eroded, isprs),
        "touched": (touched, buildings),
        "border_m": (border_m, buildings),
        "contact_m": (contact_m, buildings),
    }
    for name, (value, owners) in given.items():
        if value and layout not in owners:
            raise OptionsError(f"{root}: option {name!r} belongs to the layouts {', '.join(owners)}, not to {layout!r}; leave it out")
    if contact_m and not border_m:
        raise OptionsError(f"{root}: contact_m without border_m; state the width of the border, too")
    match layout:
        case "set":
            return LabelledSet.read(root, legend)
        case "scenes":
            return scenes(root, legend, bands)
        case "spacenet":
            return spacenet(root, legend, bands, touched=touched, border_m=border_m, contact_m=contact_m)
        case "potsdam":
            return potsdam(root, legend, bands, eroded=eroded)
        case "vaihingen":
            return vaihingen(root, legend, bands, eroded=eroded)
        case "loveda":
            return loveda(root, legend, bands)
        case "landcoverai":
            return landcoverai(root, legend, bands)
        case "openearthmap":
            return openearthmap(root, legend, bands)
