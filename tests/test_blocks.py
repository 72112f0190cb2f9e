"""Blocks on disk come back as one raster, whatever their layout."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.blocks import BlockMosaic, write_block
from geoseg.errors import OutputError
from geoseg.tiling import cores
from geoseg.window import Window


@given(st.integers(1, 90), st.integers(1, 90), st.integers(5, 100), st.integers(1, 40), st.integers(1, 40))
def test_the_mosaic_is_the_raster_that_was_cut(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, block: int, band: int, piece: int
) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    raster = np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8)
    whole = Window(0, 0, height, width)
    parts = []
    for core in cores(whole, block):
        path = folder / f"block-{core.row}-{core.col}.tif"
        write_block(path, core, ((w, raster[:, *w.within(whole)]) for w in core.split(band, core.width)), 3)
        parts.append((core, path))
    mosaic = BlockMosaic(parts, [2, 0])
    for window, values in mosaic.read(whole.split(piece, piece)):
        np.testing.assert_array_equal(values, raster[[2, 0], *window.within(whole)])
    np.testing.assert_array_equal(np.concatenate([values for _, values in mosaic.bands(band)], axis=1), raster[[2, 0]])


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    core = Window(0, 0, 10, 10)

    def bands():
        yield Window(0, 0, 5, 10), np.zeros((1, 5, 10), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_block(tmp_path / "block-0.tif", core, bands(), 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [300, 2_000, 50_000])
def test_a_full_disk_is_one_clear_line(tmp_path: Path, limit: int) -> None:
    import resource

    core = Window(0, 0, 600, 600)
    noise = np.random.default_rng(0).integers(0, 256 if limit > 2_000 else 2, (1, 600, 600), dtype=np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OutputError, match="the disk may be full"):
            write_block(tmp_path / "block-0.tif", core, iter([(core, noise)]), 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_a_block_that_was_damaged_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "block-0.tif"
    path.write_bytes(b"II*\0damaged")
    with pytest.raises(OutputError, match="cannot be read back"):
        list(BlockMosaic([(Window(0, 0, 4, 4), path)], [0]).bands(4))
