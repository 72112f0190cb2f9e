"""Class rasters into polygons that share their edges."""

from geoseg.polygons.arcs import Arcs, Block, trace
from geoseg.polygons.coverage import Faces, assemble, on_map
from geoseg.polygons.join import join
from geoseg.polygons.measure import class_areas, face_areas, face_perimeters, pixel_areas, pixel_size, zonal_means
from geoseg.polygons.separate import Mask, outlines
from geoseg.polygons.shaping import Shaping, polygonize
from geoseg.polygons.wkb import encode, sizes

__all__ = [
    "Arcs",
    "Block",
    "Faces",
    "Mask",
    "Shaping",
    "assemble",
    "class_areas",
    "encode",
    "face_areas",
    "face_perimeters",
    "join",
    "on_map",
    "outlines",
    "pixel_areas",
    "pixel_size",
    "polygonize",
    "sizes",
    "trace",
    "zonal_means",
]
