"""Class rasters into polygons that share their edges."""

from geoseg.polygons.arcs import Arcs, Block, trace
from geoseg.polygons.coverage import Faces, assemble, on_map, polygonize
from geoseg.polygons.measure import class_areas, face_areas, pixel_areas
from geoseg.polygons.wkb import encode, sizes

__all__ = [
    "Arcs",
    "Block",
    "Faces",
    "assemble",
    "class_areas",
    "encode",
    "face_areas",
    "on_map",
    "pixel_areas",
    "polygonize",
    "sizes",
    "trace",
]
