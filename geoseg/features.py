"""Polygons and what is known of each, ready for any vector file."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyogrio.errors
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoseg import polygons
from geoseg.errors import OutputError
from geoseg.legend import Legend
from geoseg.polygons import Faces
from geoseg.polygons.measure import face_perimeters

_BATCH_BYTES = 1 << 24  # of geometry handed on at a time
_FAILURES = (OSError, sqlite3.Error, pa.ArrowException, pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError)


@dataclass(frozen=True, eq=False)
class Features:
    """The faces of a class raster with their attributes.

    Attributes:
        faces: of the whole raster.
        grid: of the raster.
        legend: the class of every face is in it.
        areas_m2: (F,) float64, NaN where it is not known.
        perimeters_m: (F,) float64, holes included, NaN where it is not known.
        values: what the attribute ``class_id`` says for class ids that stand for another number in the raster.
        columns: further attributes, (F,) float64 each, NaN where not known.
    """

    faces: Faces
    grid: GeoBox
    legend: Legend
    areas_m2: NDArray[np.float64]
    perimeters_m: NDArray[np.float64]
    values: Mapping[int, int] = field(default_factory=dict)
    columns: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        faces: Faces,
        grid: GeoBox,
        legend: Legend,
        *,
        values: Mapping[int, int] | None = None,
        columns: Mapping[str, NDArray[np.float64]] | None = None,
    ) -> Features:
        """Measure faces.

        Raises:
            OutputError: if the class of a face is not in the legend.
        """
        unknown = sorted(set(np.unique(faces.class_id).tolist()) - set(legend.ids))
        if unknown:
            raise OutputError(
                f"the class raster holds class {unknown[0]}, legend {legend.name!r} has {', '.join(map(str, legend.ids))}; "
                "use the legend of the model that made the raster"
            )
        areas, perimeters = polygons.face_areas(faces, grid), face_perimeters(faces, grid)
        return cls(faces, grid, legend, areas, perimeters, values or {}, columns or {})

    def counts(self) -> dict[int, int]:
        """Number of polygons of each class id of the legend."""
        return {c.id: int(count) for c, count in zip(self.legend.classes, self.faces.count()[list(self.legend.ids)], strict=True)}

    def value(self, class_id: int) -> int:
        """What the attribute ``class_id`` says of a class."""
        return self.values.get(class_id, class_id)

    def schema(self, geometry: str) -> pa.Schema:
        """The columns of a batch; the geometry, under the name asked for, is ISO WKB of MultiPolygons."""
        highest = max(abs(self.value(class_id)) for class_id in self.legend.ids)
        integer = next(kind for bits, kind in ((15, pa.int16()), (31, pa.int32()), (63, pa.int64())) if highest < 1 << bits)
        return pa.schema(
            [
                pa.field(geometry, pa.binary(), metadata={"ARROW:extension:name": "ogc.wkb"}),
                pa.field("class_id", integer),
                pa.field("class_name", pa.string()),
                pa.field("area_m2", pa.float64()),
                pa.field("perimeter_m", pa.float64()),
                pa.field("confidence", pa.float32()),
                *(pa.field(name, pa.float64()) for name in self.columns),
            ]
        )

    def batches(self, schema: pa.Schema, class_id: int | None = None) -> Iterator[pa.RecordBatch]:
        """The faces of a class, or all, in their order, some megabytes at a time."""
        for chosen in self.portions(class_id):
            yield self.batch(schema, chosen)

    def portions(self, class_id: int | None = None) -> Iterator[NDArray[np.int64]]:
        """The numbers of the faces of a class, or of all, in their order, as many at a time as a batch holds."""
        mine = np.arange(len(self.faces)) if class_id is None else np.flatnonzero(self.faces.class_id == class_id)
        filled = np.cumsum(polygons.sizes(self.faces)[mine])
        yield from np.split(mine, np.flatnonzero(np.diff(filled // _BATCH_BYTES)) + 1)

    def batch(self, schema: pa.Schema, chosen: NDArray[np.int64]) -> pa.RecordBatch:
        """Some faces and their attributes."""
        data, offsets = polygons.encode(self.faces, chosen, self.grid.affine)
        geometry = pa.Array.from_buffers(pa.binary(), len(chosen), [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)])
        ids, names = np.zeros(256, np.int64), [""] * 256
        for c in self.legend.classes:
            ids[c.id], names[c.id] = self.value(c.id), c.name
        classes = self.faces.class_id[chosen]
        columns = [
            geometry,
            pa.array(ids[classes]).cast(schema.field("class_id").type),
            pa.array(names).take(pa.array(classes)),
            pa.array(self.areas_m2[chosen], from_pandas=True),
            pa.array(self.perimeters_m[chosen], from_pandas=True),
            pa.array(self.faces.confidence[chosen], from_pandas=True),
            *(pa.array(values[chosen], from_pandas=True) for values in self.columns.values()),
        ]
        return pa.record_batch(columns, schema=schema)


@contextlib.contextmanager
def published(path: Path, suffix: str) -> Iterator[Path]:
    """A draft beside a file: it takes the file's name when it is complete and durable, or nothing is left of it.

    Args:
        path: of the file, replaced where it exists.
        suffix: of the draft's name, which GDAL judges it by.

    Raises:
        OutputError: if it cannot be written.
    """
    part = path.with_name(f"{path.name}.part{suffix}")
    try:
        _sweep(part)
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except _FAILURES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OutputError(f"{path}: cannot be written ({reason}); free space, or choose a folder that can be written") from error
    finally:
        with contextlib.suppress(OSError):
            _sweep(part)


def _sweep(part: Path) -> None:
    """Remove a draft, and what GDAL keeps beside it while it writes."""
    for leftover in part.parent.iterdir():
        if leftover.name.startswith(part.stem) and leftover.is_file():
            leftover.unlink()
