"""Finished blocks on disk, and the scene read back from them."""

from __future__ import annotations

import errno
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import rasterio
import rasterio.errors
import rasterio.windows

from geoseg.errors import OutputError
from geoseg.instances import View, pack, unpack
from geoseg.window import Window

_STRIP = 32
_DAMAGED = (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
_ENVIRONMENT = {"GDAL_PAM_ENABLED": "NO", "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}


def write_block(path: Path, core: Window, bands: Iterable[tuple[Window, np.ndarray]], layers: int) -> None:
    """Write one block's answers; the file appears only when it is complete, read back and durable.

    Args:
        path: target.
        core: what the block owns.
        bands: row bands from top to bottom: a window inside ``core`` and ``(layers, height, width)`` uint8.
        layers: number of layers (classes, confidence, scores).

    Raises:
        OutputError: if the disk is full or the file cannot be written.
    """
    part = path.with_name(path.name + ".part.tif")
    shape = {"count": layers, "height": core.height, "width": core.width, "dtype": "uint8", "interleave": "band"}
    shape["transform"] = rasterio.Affine(1, 0, core.col + 1, 0, -1, -core.row)  # any place will do: rasterio warns where there is none
    try:
        with (
            rasterio.Env(**_ENVIRONMENT),
            rasterio.open(part, "w", driver="GTiff", compress="zstd", zstd_level=1, blockysize=_STRIP, bigtiff="IF_SAFER", **shape) as file,
        ):
            proofs = []
            for window, values in bands:
                place = rasterio.windows.Window.from_slices(*window.within(core))
                file.write(values, window=place)
                proofs.append((place, zlib.crc32(values.tobytes())))
        _verify(part, proofs)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
    except (rasterio.errors.RasterioError, OSError) as error:
        raise OutputError(
            f"{path.parent}: a block cannot be written, the disk may be full ({_line(error)}); free space or choose another --out"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _verify(part: Path, proofs: Iterable[tuple[rasterio.windows.Window, int]]) -> None:
    """Read a file back: closing one on a full disk is not always an error.

    Raises:
        OSError: if it does not hold what was written.
    """
    with rasterio.Env(**_ENVIRONMENT), rasterio.open(part, driver="GTiff", sharing=False) as file:
        for place, proof in proofs:
            if zlib.crc32(file.read(window=place).tobytes()) != proof:
                raise OSError(errno.ENOSPC, "it does not read back as it was written")


def write_views(path: Path, views: Sequence[View]) -> None:
    """Write what the tiles of one block show; the file appears only when it is complete, read back and durable.

    Raises:
        OutputError: if the disk is full or the file cannot be written.
    """
    part = path.with_name(path.name + ".part")
    arrays = pack(views)
    try:
        with part.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        _verify_views(part, arrays)
        part.replace(path)
    except (OSError, *_DAMAGED) as error:
        raise OutputError(
            f"{path.parent}: a block cannot be written, the disk may be full ({_line(error)}); free space or choose another --out"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _verify_views(part: Path, arrays: dict[str, np.ndarray]) -> None:
    """Read a file back, as `_verify` does.

    Raises:
        OSError: if it does not hold what was written.
    """
    with part.open("rb") as open_part, np.load(open_part, allow_pickle=False) as file:
        if any(not np.array_equal(file[name], values) for name, values in arrays.items()):
            raise OSError(errno.ENOSPC, "it does not read back as it was written")


def read_views(path: Path) -> list[View]:
    """Read what `write_views` wrote.

    Raises:
        OutputError: if the block cannot be read back.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as written:
            return unpack(dict(written))
    except (OSError, *_DAMAGED) as error:
        raise OutputError(f"{path}: a finished block cannot be read back ({_line(error)}); run again with --force") from error


class BlockMosaic:
    """All finished blocks of a scene as one raster of ``layers`` uint8 layers."""

    def __init__(self, parts: Sequence[tuple[Window, Path]], layers: Sequence[int]) -> None:
        """Put blocks together.

        Args:
            parts: cores and files; the cores partition the raster.
            layers: which layers to read, from 0.
        """
        self._parts, self._indexes = list(parts), [layer + 1 for layer in layers]
        self.window = Window.between(
            min(core.row for core, _ in parts),
            min(core.col for core, _ in parts),
            max(core.end_row for core, _ in parts),
            max(core.end_col for core, _ in parts),
        )

    def read(self, windows: Iterable[Window]) -> Iterator[tuple[Window, np.ndarray]]:
        """Read windows of the raster, in an order that goes down it, keeping only the blocks open that are needed.

        Yields:
            Each window with its ``(layers, height, width)`` uint8.

        Raises:
            OutputError: if a block cannot be read back.
        """
        with rasterio.Env(**_ENVIRONMENT):
            files: dict[Path, rasterio.DatasetReader] = {}
            try:
                for window in windows:
                    values = np.zeros((len(self._indexes), *window.shape), np.uint8)
                    touched = [(core, path, common) for core, path in self._parts if (common := core & window)]
                    for path in files.keys() - {path for _, path, _ in touched}:
                        files.pop(path).close()
                    for core, path, common in touched:
                        if path not in files:
                            files[path] = rasterio.open(path, driver="GTiff", sharing=False)
                        source = rasterio.windows.Window.from_slices(*common.within(core))
                        values[:, *common.within(window)] = files[path].read(self._indexes, window=source)
                    yield window, values
            except rasterio.errors.RasterioError as error:
                raise OutputError(f"{path}: a finished block cannot be read back ({_line(error)}); run again with --force") from error
            finally:
                for file in files.values():
                    file.close()

    def bands(self, height: int) -> Iterator[tuple[Window, np.ndarray]]:
        """Row bands over the full width, top to bottom."""
        return self.read(self.window.split(height, self.window.width))


def _line(error: BaseException) -> str:
    return " ".join(str(error.__cause__ or error).split())
