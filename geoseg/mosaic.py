"""The class rasters of many scenes as one, without a copied pixel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import rasterio

from geoseg.errors import GeoreferenceError
from geoseg.legend import Legend
from geoseg.manifest import write_whole

_SAME_PIXEL = 1e-6
"""Largest relative difference of pixel sizes that are one."""
_ON_GRID = 1e-3
"""Pixels: a scene that lies closer to the mosaic's grid lies on it."""


def write_vrt(rasters: Sequence[Path], target: Path, legend: Legend | None = None) -> int:
    """Write a GDAL virtual mosaic of rasters of one band, bytes, with a nodata value.

    The grid is that of the first raster, as far as all of them reach; a raster whose pixels lie between those of the grid is
    moved by less than half a pixel. Where rasters overlap the last one that has data is seen.

    Args:
        rasters: GeoTIFFs in or under the folder of ``target``.
        target: the VRT.
        legend: of a class raster, for its colours and names.

    Returns:
        How many of the rasters were moved.

    Raises:
        GeoreferenceError: if they have different CRS or pixel sizes, or are turned.
        OutputError: if the VRT cannot be written.
    """
    first, corner, edge, places = "", np.zeros(2), np.zeros(2), []
    for path in rasters:
        with rasterio.open(path) as file:
            at, seen = file.transform, f"{file.crs}, pixels of {file.transform.a:.9g} x {-file.transform.e:.9g}"
            if not first:
                step, crs, tags, nodata, first = np.array([at.a, at.e]), file.crs, file.tags(), file.nodata, f"{path.name}: {seen}"
                origin = np.array([at.c, at.f])
            same = np.abs(np.array([at.a, at.e]) / step - 1).max() <= _SAME_PIXEL
            if file.crs != crs or not same or at.b or at.d or crs is None:
                turned = ", turned" if at.b or at.d else ""
                raise GeoreferenceError(
                    f"{path.name}: {seen}{turned}; {first}; a mosaic needs one CRS and one pixel size, north up: warp the scenes first"
                )
            start = (np.array([at.c, at.f]) - origin) / step
            whole = np.rint(start)
            places.append((path, whole.astype(int), (file.width, file.height), bool(np.abs(start - whole).max() > _ON_GRID)))
            corner, edge = np.minimum(corner, whole), np.maximum(edge, whole + np.array([file.width, file.height]))
    width, height = (edge - corner).astype(int)
    x, y = origin + corner * step

    root = ElementTree.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    _child(root, "SRS", crs.to_wkt())
    _child(root, "GeoTransform", ", ".join(repr(float(number)) for number in (x, step[0], 0, y, 0, step[1])))
    metadata = _child(root, "Metadata")
    for key, text in {**tags, "SOURCE": f"{len(places)} scenes"}.items():
        if not key.startswith(("TIFFTAG_", "SOURCE_")):
            _child(metadata, "MDI", text, key=key)
    band = _child(root, "VRTRasterBand", dataType="Byte", band="1")
    _child(band, "NoDataValue", f"{nodata:g}")
    if legend is not None:
        _child(band, "ColorInterp", "Palette")
        names, colours = _child(band, "CategoryNames"), _child(band, "ColorTable")
        known = {c.id: c for c in legend.classes}
        for number in range(max(known) + 1):
            of = known.get(number)
            red, green, blue = (0, 0, 0) if of is None else of.rgb
            _child(names, "Category", "" if of is None else of.title)
            _child(colours, "Entry", c1=str(red), c2=str(green), c3=str(blue), c4=str(0 if of is None else 255))
    for path, (left, top), (columns, rows), _ in places:
        source = _child(band, "ComplexSource")
        _child(source, "SourceFilename", os.path.relpath(path.absolute(), target.absolute().parent), relativeToVRT="1")
        _child(source, "SourceBand", "1")
        sides = {"xSize": str(columns), "ySize": str(rows)}
        _child(source, "SrcRect", xOff="0", yOff="0", **sides)
        _child(source, "DstRect", xOff=str(left - int(corner[0])), yOff=str(top - int(corner[1])), **sides)
        _child(source, "NODATA", f"{nodata:g}")
    ElementTree.indent(root)
    write_whole(target, ElementTree.tostring(root))
    return sum(moved for *_, moved in places)


def _child(parent: ElementTree.Element, tag: str, text: str | None = None, **attributes: str) -> ElementTree.Element:
    made = ElementTree.SubElement(parent, tag, attributes)
    made.text = text
    return made
