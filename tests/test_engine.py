"""Laws 3, 4 and 5 of the core: what tiling and blocks must not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from geoseg.blend import TAPERS, Taper
from geoseg.engine import Options, Plan, make_plan, predict_block
from geoseg.errors import CoverageError, ResolutionError, TilingError
from geoseg.region import Region
from geoseg.segmenter import Segmenter
from geoseg.verbs.segment import ArraySource
from geoseg.window import Window
from tests.oracles import Looking, Pointwise, Pooling, decided, margin, segmenter, whole_scene_logits

POINTWISE, LOOKING, POOLING = segmenter(Pointwise()), segmenter(Looking()), segmenter(Pooling(reach=2))

shapes = st.one_of(
    st.sampled_from([(1, 1), (1, 70), (70, 1), (31, 31), (32, 32), (33, 97), (97, 89), (8, 101)]),
    st.tuples(st.integers(1, 110), st.integers(1, 110)),
)


@st.composite
def scenes(draw: st.DrawFn) -> ArraySource:
    """Noise with rectangular holes in it, of any odd size."""
    shape = draw(shapes)
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    valid = np.ones(shape, bool)
    for _ in range(draw(st.integers(0, 3))):
        row, col = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        valid[row : row + rng.integers(1, 60), col : col + rng.integers(1, 60)] = False
    pixels = rng.integers(0, 256, (3, *shape), dtype=np.uint8)
    return ArraySource(pixels, valid, Window.of(shape), shape)


def planned(scene: ArraySource, model: Segmenter, options: Options | None = None, region: Region | None = None) -> Plan:
    return make_plan(scene, model.card, options or Options(), pixel_m=None, stretch=None, region=region)


def answered(plan: Plan, model: Segmenter, block: int = 10_000) -> np.ndarray:
    """All layers of the plan's region."""
    whole = plan.region.window
    layers = np.full((plan.layers(len(model.card.legend)), *whole.shape), 77, np.uint8)
    for core in plan.cores(block):
        last = core.row
        for window, values in predict_block(plan, core, model):
            assert window.row == last, "row bands come top to bottom without gaps"
            last = window.end_row
            layers[:, *window.within(whole)] = values
        assert last == core.end_row
    return layers


@given(scenes(), st.sampled_from(TAPERS), st.integers(7, 120))
@example(ArraySource(np.full((3, 1, 1), 9, np.uint8), np.ones((1, 1), bool), Window(0, 0, 1, 1), (1, 1)), "flat", 7)
def test_pointwise_networks_are_untouched_by_tiling(scene: ArraySource, taper: Taper, block: int) -> None:
    logits = whole_scene_logits(POINTWISE, scene.pixels, scene.valid_pixels)
    layers = answered(planned(scene, POINTWISE, Options(taper=taper)), POINTWISE, block)
    sure = (margin(logits) > 1e-4) | ~scene.valid_pixels
    np.testing.assert_array_equal(layers[0][sure], decided(POINTWISE, logits, scene.valid_pixels)[sure])
    scores = np.exp(logits - logits.max(0)) / np.exp(logits - logits.max(0)).sum(0)
    expected = np.where(scene.valid_pixels, 254 * scores.max(0), 255)
    assert np.abs(layers[1] - expected).max() <= 0.51


@given(scenes(), st.sampled_from([LOOKING, POOLING]), st.sampled_from(TAPERS), st.integers(7, 120), st.integers(7, 120))
def test_answers_do_not_depend_on_blocks(scene: ArraySource, model: Segmenter, taper: Taper, one: int, other: int) -> None:
    plan = planned(scene, model, Options(taper=taper, scores=True))
    np.testing.assert_array_equal(answered(plan, model, one), answered(plan, model, other))


@given(scenes(), st.data())
def test_a_region_has_the_answers_of_the_whole(scene: ArraySource, data: st.DataObject) -> None:
    height, width = scene.shape
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    part = Window.between(row, col, data.draw(st.integers(row + 1, height)), data.draw(st.integers(col + 1, width)))
    whole = answered(planned(scene, LOOKING), LOOKING)
    np.testing.assert_array_equal(
        answered(planned(scene, LOOKING, region=Region(part)), LOOKING), whole[:, *part.within(Window.of(scene.shape))]
    )


@given(scenes(), st.sampled_from([LOOKING, POOLING]), st.sampled_from(["box", "flat"]))
def test_convolutions_survive_cropping(scene: ArraySource, model: Segmenter, taper: Taper) -> None:
    """Reach within the margin: tiled equals whole, borders included.

    The margin is half the overlap with a box, three eighths of it with the flat taper; the one network looks 3 pixels far, of
    3, the other 3 cells of 4 pixels and a cell's rest, of 18.
    """
    options = Options(tile=96, overlap=48, taper=taper) if model is POOLING else Options(taper=taper)
    whole = whole_scene_logits(model, scene.pixels, scene.valid_pixels)
    layers = answered(planned(scene, model, options), model)
    sure = (margin(whole) > 1e-4) & scene.valid_pixels
    np.testing.assert_array_equal(layers[0][sure], decided(model, whole, scene.valid_pixels)[sure])


def test_the_batch_does_not_change_the_answer() -> None:
    rng = np.random.default_rng(1)
    scene = ArraySource(rng.integers(0, 256, (3, 97, 89), dtype=np.uint8), np.ones((97, 89), bool), Window(0, 0, 97, 89), (97, 89))
    expected = answered(planned(scene, LOOKING), LOOKING)
    larger = segmenter(Looking())
    larger.prepare((32, 32), largest=5)
    assert larger.batch == 5
    np.testing.assert_array_equal(answered(planned(scene, larger), larger)[0], expected[0])


class Forgetful(Looking):
    """Runs out of memory on batches of more than two, as a small GPU would."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("fake: out of memory")
        return super().forward(x)


def test_out_of_memory_halves_the_batch_and_goes_on() -> None:
    rng = np.random.default_rng(1)
    scene = ArraySource(rng.integers(0, 256, (3, 90, 90), dtype=np.uint8), np.ones((90, 90), bool), Window(0, 0, 90, 90), (90, 90))
    small = segmenter(Forgetful())
    small.prepare((32, 32), largest=16)
    np.testing.assert_array_equal(answered(planned(scene, small), small)[0], answered(planned(scene, LOOKING), LOOKING)[0])
    assert small.batch == 2


class Silent(Looking):
    """Answers one pixel with NaN, as an overflow in half precision would."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer = super().forward(x).clone()
        answer[:, :, 16, 16] = torch.nan
        return answer


def test_a_pixel_without_answer_is_loud() -> None:
    scene = ArraySource(np.zeros((3, 40, 40), np.uint8), np.ones((40, 40), bool), Window(0, 0, 40, 40), (40, 40))
    model = segmenter(Silent())
    with pytest.raises(CoverageError, match="got no finite answer"):
        answered(planned(scene, model), model)


class Broken:
    """A source whose bytes cannot be decoded from some row on."""

    shape = (90, 50)

    def reader(self) -> Broken:
        return self

    def __enter__(self) -> Broken:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        if window.end_row > 60:
            raise RuntimeError("fake: cannot decode")
        return np.zeros((3, *window.shape), np.uint8), np.ones(window.shape, bool)

    def valid(self, window: Window) -> np.ndarray:
        return np.ones(window.shape, bool)

    def empty(self, window: Window) -> bool:
        return False


def test_a_failure_of_the_reading_thread_reaches_the_caller() -> None:
    plan = make_plan(Broken(), LOOKING.card, Options(), pixel_m=None, stretch=None)
    with pytest.raises(RuntimeError, match="cannot decode"):
        answered(plan, LOOKING)


def test_tiles_without_valid_pixels_are_not_asked() -> None:
    asked = []

    class Counting(Looking):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            asked.append(len(x))
            return super().forward(x)

    model = segmenter(Counting())
    valid = np.zeros((400, 40), bool)
    valid[390:] = True
    scene = ArraySource(np.zeros((3, 400, 40), np.uint8), valid, Window(0, 0, 400, 40), (400, 40))
    layers = answered(planned(scene, model), model)
    assert sum(asked) <= 4
    assert ((layers[0] > 0) == valid).all()
    assert ((layers[1] == 255) == ~valid).all()


def test_a_scene_far_from_the_models_resolution_is_refused() -> None:
    scene = ArraySource(np.zeros((3, 9, 9), np.uint8), np.ones((9, 9), bool), Window(0, 0, 9, 9), (9, 9))
    with pytest.raises(ResolutionError, match="pixels are 10 m on the ground, model 'test' needs about 1 m"):
        make_plan(scene, LOOKING.card, Options(), pixel_m=10.0, stretch=None)


def test_a_tile_that_does_not_fit_the_network_is_refused() -> None:
    scene = ArraySource(np.zeros((3, 9, 9), np.uint8), np.ones((9, 9), bool), Window(0, 0, 9, 9), (9, 9))
    with pytest.raises(TilingError, match="not a multiple"):
        make_plan(scene, POOLING.card, Options(tile=30), pixel_m=None, stretch=None)
