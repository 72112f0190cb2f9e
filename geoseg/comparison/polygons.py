"""Polygons and their references, matched image by image and class by class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import shapely

from geoseg.comparison.pairs import Pair, is_vector
from geoseg.errors import OptionsError
from geoseg.matching import Matches, match
from geoseg.outlines import Outlines

_PIXELS2 = 20.0  # smaller polygons do not count in SpaceNet's chips


def matches_of(
    pair: Pair, *, class_name: str | None, iou: float, min_area: float | None, area: Path | None = None
) -> Iterator[tuple[str, dict[str, Matches]]]:
    """The matches of each class, for each image that either file names.

    Args:
        pair: two vector files.
        class_name: the class that is scored, which polygons without one are taken to have; None for all.
        iou: smallest intersection over union of a pair.
        min_area: smaller polygons do not count; None for 20 square pixels where coordinates are pixels, else 0.
        area: a vector file; only polygons count whose centroid lies in its polygons. None for all.

    Raises:
        OptionsError: if the files have no plane, image or class in common.
    """
    wanted = None if area is None else Outlines.read(area)
    for scene, ours, theirs in _by_image(pair):
        if wanted is not None:
            ours, theirs = _inside(ours, wanted), _inside(theirs, wanted)
        yield scene, {name: _matched(one, other, iou, min_area) for name, one, other in _by_class(ours, theirs, class_name)}


def _inside(outlines: Outlines, area: Outlines) -> Outlines:
    """The polygons whose centroid lies in an area."""
    if (outlines.crs is None) != (area.crs is None):
        raise OptionsError(f"{area.path} in {_plane(area)} is no place in {outlines.path}, in {_plane(outlines)}; bring both to one CRS")
    return outlines.of(shapely.intersects(shapely.union_all(area.moved(outlines.crs)), shapely.centroid(outlines.shapes)))


def _by_image(pair: Pair) -> Iterator[tuple[str, Outlines, Outlines]]:
    """Scene, predicted and reference polygons."""
    for file, other in ((pair.prediction, pair.reference), (pair.reference, pair.prediction)):
        if not is_vector(file):
            raise OptionsError(f"{file}: is no vector file, but {other} is; compare polygons with polygons")
    ours, theirs = Outlines.read(pair.prediction), Outlines.read(pair.reference)
    if (ours.crs is None) != (theirs.crs is None) or ours.in_pixels != theirs.in_pixels:
        seen = (f"{each.path} in {_plane(each)}" for each in (ours, theirs))
        raise OptionsError(f"coordinates are of different kinds: {' and '.join(seen)}; bring both to one CRS with ogr2ogr")
    images = [name for name in dict.fromkeys((*theirs.names, *ours.names)) if name]
    if not images:
        yield pair.name, ours, theirs
        return
    nameless = next((each.path for each in (ours, theirs) if (each.images == "").any()), None)
    if nameless is not None:
        raise OptionsError(f"{nameless}: has polygons without an image; expected ImageId of all in both files, or in neither")
    for image in images:
        yield image, ours.of(ours.images == image), theirs.of(theirs.images == image)


def _plane(outlines: Outlines) -> str:
    return "pixels" if outlines.in_pixels else "an unknown CRS" if outlines.crs is None else str(outlines.crs.name)


def _by_class(ours: Outlines, theirs: Outlines, class_name: str | None) -> Iterator[tuple[str, Outlines, Outlines]]:
    """Class, predicted and reference polygons."""
    one, other = ({text.casefold() for text in each.classes} - {""} for each in (ours, theirs))
    if class_name is not None:
        yield class_name, _named(ours, class_name, ""), _named(theirs, class_name, "")
    elif not one and not other:
        yield "polygon", ours, theirs
    elif (ours.classes == "").any() or (theirs.classes == "").any():
        nameless = theirs if (theirs.classes == "").any() else ours
        raise OptionsError(f"{nameless.path}: has polygons without a class beside others with one; say with --class which is scored")
    elif len(ours) and len(theirs) and not one & other:
        seen = (f"{each.path} has {', '.join(sorted(names)) or 'none'}" for each, names in ((ours, one), (theirs, other)))
        raise OptionsError(f"the polygons have no class in common: {' and '.join(seen)}; say with --class which is scored")
    else:
        for name in sorted(one | other):
            yield name, _named(ours, name), _named(theirs, name)


def _named(outlines: Outlines, *names: str) -> Outlines:
    """The polygons of some classes."""
    wanted = {name.casefold() for name in names}
    return outlines.of(np.array([text.casefold() in wanted for text in outlines.classes], bool))


def _matched(ours: Outlines, theirs: Outlines, iou: float, min_area: float | None) -> Matches:
    least = min_area if min_area is not None else _PIXELS2 if theirs.in_pixels else 0.0
    predicted, reference = ours.of(shapely.area(ours.shapes) >= least), theirs.moved(ours.crs)
    sure = np.where(np.isnan(predicted.confidence), -np.inf, predicted.confidence)
    return match(predicted.shapes, reference[shapely.area(reference) >= least], sure, iou=iou)[0]
