"""Pixel rectangles: against sets of pixels and against rasterio."""

import pytest
import rasterio.windows
from hypothesis import given
from hypothesis import strategies as st

from geoseg.window import Window

windows = st.builds(Window, st.integers(-20, 20), st.integers(-20, 20), st.integers(1, 25), st.integers(1, 25))


def pixels(window: Window | None) -> set[tuple[int, int]]:
    return set() if window is None else {(r, c) for r in range(window.row, window.end_row) for c in range(window.col, window.end_col)}


@given(windows, windows)
def test_intersection_holds_the_common_pixels(a: Window, b: Window) -> None:
    assert pixels(a & b) == pixels(a) & pixels(b)
    assert a.contains(b) == (pixels(b) <= pixels(a))


@given(windows, windows)
def test_intersection_is_rasterios(a: Window, b: Window) -> None:
    ours = a & b
    theirs = [rasterio.windows.Window(w.col, w.row, w.width, w.height) for w in (a, b)]
    if ours is None:
        with pytest.raises(rasterio.errors.WindowError):
            rasterio.windows.intersection(*theirs)
    else:
        assert rasterio.windows.intersection(*theirs) == rasterio.windows.Window(ours.col, ours.row, ours.width, ours.height)


@given(windows, st.integers(1, 9), st.integers(1, 9))
def test_split_covers_each_pixel_once(window: Window, height: int, width: int) -> None:
    parts = [pixels(part) for part in window.split(height, width)]
    assert set().union(*parts) == pixels(window)
    assert sum(map(len, parts)) == window.area


@given(windows, windows)
def test_within_gives_the_place_in_an_array(a: Window, b: Window) -> None:
    common = a & b
    if common is None:
        return
    rows, cols = common.within(b)
    assert (rows.start + b.row, cols.start + b.col) == (common.row, common.col)
    assert (rows.stop - rows.start, cols.stop - cols.start) == common.shape
    if not b.contains(a):
        with pytest.raises(ValueError, match="not inside"):
            a.within(b)


@pytest.mark.parametrize("bad", [(0, 0, 0, 1), (0, 0, 1, -2)])
def test_an_empty_window_is_refused(bad: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="empty"):
        Window(*bad)


def test_a_float_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Window\.row is 0\.5"):
        Window(0.5, 0, 1, 1)  # type: ignore[arg-type]
