"""Laws 1 and 2: cores partition the scene, weights add up to one everywhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.blend import TAPERS, Taper, rim, taper
from geoseg.errors import TilingError
from geoseg.tiling import Tiling, cores
from geoseg.window import Window

lengths = st.one_of(st.sampled_from([1, 2, 31, 97, 101]), st.integers(1, 200))


@st.composite
def tilings(draw: st.DrawFn) -> Tiling:
    align = draw(st.sampled_from([1, 4, 8]))
    tile = align * draw(st.integers(2, 8))
    overlap = align * draw(st.integers(0, tile // align // 2))
    return Tiling(draw(lengths), draw(lengths), tile, overlap, align)


@given(lengths, lengths, st.integers(1, 90), st.sampled_from([1, 16, 32]), st.integers(-50, 50), st.integers(-50, 50))
def test_cores_partition_the_scene(height: int, width: int, largest: int, align: int, row: int, col: int) -> None:
    count = np.zeros((height, width), int)
    scene = Window(row, col, height, width)
    for core in cores(scene, largest, align):
        assert max(core.shape) <= largest
        count[core.within(scene)] += 1
    assert (count == 1).all()


@given(tilings(), st.sampled_from(TAPERS), st.data())
def test_weights_add_up_to_one_on_every_core(tiling: Tiling, name: Taper, data: st.DataObject) -> None:
    weights = taper(name, tiling.tile, tiling.overlap)
    grid = Window.of((tiling.height, tiling.width))
    core = data.draw(st.sampled_from(list(cores(grid, data.draw(st.integers(1, 200))))))
    mass = np.zeros(core.shape)
    for tile in tiling.tiles(core, rim(weights)):
        common = tile.window & core
        assert common is not None
        rows, cols = common.within(tile.window)
        mass[common.within(core)] += weights[rows, None] * weights[None, cols]
    np.testing.assert_allclose(mass, 1, atol=1e-5)


@given(tilings(), st.data())
def test_tiles_do_not_depend_on_blocks(tiling: Tiling, data: st.DataObject) -> None:
    grid = Window.of((tiling.height, tiling.width))
    whole = list(tiling.tiles(grid))
    order = {tile: i for i, tile in enumerate(whole)}
    parts = set()
    for core in cores(grid, data.draw(st.integers(1, 200))):
        tiles = list(tiling.tiles(core))
        places = [order[tile] for tile in tiles]
        assert places == sorted(places), "tiles of a block come in the order of the scene"
        parts |= set(tiles)
    assert parts == set(whole)


@given(tilings())
def test_a_tile_sees_every_pixel_that_it_answers(tiling: Tiling) -> None:
    grid = Window.of((tiling.height, tiling.width))
    shapes = set()
    for tile in tiling.tiles(grid):
        common = tile.window & grid
        assert common is not None
        assert tile.seen.contains(common)
        assert tile.seen.row % tiling.align == 0
        assert tile.seen.col % tiling.align == 0
        assert tile.seen.row >= 0
        assert tile.seen.col >= 0
        assert tile.seen.end_row < tiling.height + tiling.align
        assert tile.seen.end_col < tiling.width + tiling.align
        shapes.add(tile.seen.shape)
    assert len(shapes) == 1, "all tiles have one shape, so that batches do"


@pytest.mark.parametrize(
    ("tile", "overlap", "advice"),
    [(100, 0, "not a multiple of the network's stride; try 96"), (128, 96, "try 64"), (128, 33, "try 32"), (16, 0, "try 32")],
)
def test_what_cannot_tile_is_refused_with_advice(tile: int, overlap: int, advice: str) -> None:
    with pytest.raises(TilingError, match=advice):
        Tiling(1000, 1000, tile, overlap, align=32)


def test_a_block_without_pixels_is_refused() -> None:
    with pytest.raises(TilingError, match="block size 0"):
        list(cores(Window(0, 0, 5, 5), 0))
