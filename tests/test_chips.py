import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from geoseg.card import Scaling
from geoseg.chips import ChipOptions, Chips, Frame, Pool, Source, cut, ranged, resized, standardised, vary
from geoseg.datasets import LabelledSet
from geoseg.legend import ISPRS
from tests.test_datasets import TABLE, _write

SCALING = Scaling(dtype="uint8", low=0, high=255, percentiles=(2, 98), mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.1))
PLAIN = ChipOptions(size=32, batch=3, scale=(1.0, 1.0), rotate=0.0)
VARIED = ChipOptions(
    size=32, batch=3, scale=(0.7, 1.4), brightness=0.2, colour=0.1, gamma=0.2, contrast=0.2, saturation=0.3, noise=0.02, blur=0.5
)


def _frame(labels: np.ndarray, pixel_m: float = 0.2) -> Frame:
    """A frame whose three bands show the label code, ten times brighter."""
    picks = {code: np.argwhere(labels == code)[:, ::-1].astype(np.int32) for code in (1, 2) if (labels == code).any()}
    pixels = Image.fromarray(np.repeat(labels[..., None] * 10, 3, axis=2).astype(np.uint8))
    return Frame((pixels,), Image.fromarray(labels.astype(np.uint8)), pixel_m, pixel_m, picks)


def _pool(frames: tuple[Frame, ...]) -> Pool:
    holders = {code: np.flatnonzero([code in frame.picks for frame in frames]) for code in (1, 2)}
    return Pool(frames, 1.0, np.full(len(frames), 1 / len(frames)), {code: found for code, found in holders.items() if found.size})


def _turn(quarters: int, mirror: int) -> np.ndarray:
    cosine, sine = round(math.cos(quarters * math.pi / 2)), round(math.sin(quarters * math.pi / 2))
    return np.array([[cosine, -sine * mirror], [sine, cosine * mirror]], float)


@given(st.integers(0, 3), st.sampled_from([-1, 1]), st.integers(0, 2**32 - 1))
def test_a_quarter_turn_only_moves_pixels(quarters, mirror, seed):
    labels = np.random.default_rng(seed).integers(1, 7, (40, 40)).astype(np.uint8)
    pixels, codes, inside = cut(_frame(labels), (20.0, 20.0), 1.0, _turn(quarters, mirror), 40)
    assert inside.all()
    assert np.array_equal(pixels, np.repeat(codes[None] * 10, 3, axis=0))
    kept = [np.rot90(labels, k) for k in range(4)] + [np.rot90(labels[::-1], k) for k in range(4)]
    assert any(np.array_equal(codes, one) for one in kept)


@given(st.floats(0, 7), st.floats(0.5, 2), st.floats(-10, 50), st.floats(-10, 50))
@example(5.359678075132255, 0.5, 3.0, 5.359678075132255)  # a pixel on the edge, but for rounding
def test_pixels_and_labels_share_their_geometry(angle, step, x, y):
    labels = np.zeros((40, 50), np.uint8)
    labels[:, :25], labels[:, 25:], labels[20:, 25:] = 1, 2, 5
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    pixels, codes, inside = cut(_frame(labels), (x, y), step, turn, 32)
    assert (codes[~inside] == 0).all()
    assert (codes[inside] > 0).all()
    flat = np.ones_like(inside)
    for shift in [(r, c) for r in (-3, 0, 3) for c in (-3, 0, 3)]:
        flat &= np.roll(codes, shift, (0, 1)) == codes
    flat[:4], flat[-4:], flat[:, :4], flat[:, -4:] = False, False, False, False
    assert (pixels[:, flat & inside] == codes[flat & inside] * 10).all()


def test_a_batch_depends_on_seed_and_number_alone():
    frames = tuple(_frame(np.random.default_rng(i).integers(0, 7, (60, 70))) for i in range(3))
    all_of_them = Chips([_pool(frames)], VARIED, SCALING, 0.2, seed=3, count=4)
    later = Chips([_pool(frames)], VARIED, SCALING, 0.2, seed=3, first=2, count=2)
    other = Chips([_pool(frames)], VARIED, SCALING, 0.2, seed=4, first=2, count=2)
    for index in range(2):
        for ours, theirs in zip(all_of_them[2 + index], later[index], strict=True):
            assert torch.equal(ours, theirs)
        assert not torch.equal(later[index][0], other[index][0])
    assert len(later) == 2
    with pytest.raises(IndexError):
        later[2]


def test_chips_are_scaled_like_predictions_and_mean_outside():
    labels = np.full((20, 90), 2, np.uint8)
    pixels, codes = Chips([_pool((_frame(labels),))], PLAIN, SCALING, 0.2, seed=0)[0]
    assert (pixels.dtype, codes.dtype, pixels.shape, codes.shape) == (torch.float32, torch.uint8, (3, 3, 32, 32), (3, 32, 32))
    expected = (torch.tensor([20 / 255]) - torch.tensor(SCALING.mean)) / torch.tensor(SCALING.std)
    inside = codes > 0
    torch.testing.assert_close(pixels.permute(0, 2, 3, 1)[inside], expected.expand(int(inside.sum()), 3))
    assert (pixels.permute(0, 2, 3, 1)[~inside] == 0).all()
    assert 0 < inside.sum() < inside.numel()


def test_rare_classes_are_found():
    labels = np.ones((400, 400), np.uint8)
    labels[300:303, 50:54] = 2
    options = PLAIN.model_copy(update={"rare": 1.0, "batch": 40})
    codes = Chips([_pool((_frame(labels),))], options, SCALING, 0.2, seed=0)[0][1]
    assert 10 <= (codes == 2).flatten(1).any(1).sum() <= 30


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_varied_values_stay_in_range(seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (3, 16, 16)).astype(np.uint8)
    values = vary(pixels, SCALING, VARIED, rng)
    assert values.dtype == np.float32
    assert values.min() >= 0
    assert values.max() <= 1
    np.testing.assert_allclose(vary(pixels, SCALING, PLAIN, rng), pixels / 255, atol=1e-6)


def test_scaling_is_the_cards():
    scaling = SCALING.model_copy(update={"low": 50.0, "high": 150.0})
    values = standardised(ranged(np.array([0, 50, 100, 150, 255], np.uint8)[None, None].repeat(3, 0), scaling), scaling)
    np.testing.assert_allclose(values[0, 0], (np.array([0, 0, 0.5, 1, 1]) - 0.4) / 0.2, atol=1e-6)


def test_resized_keeps_codes():
    labels = np.random.default_rng(0).choice([0, 3, 200], (30, 40)).astype(np.uint8)
    pixels, codes = resized(_frame(labels).pixels[0], Image.fromarray(labels), 0.4)
    assert pixels.size == codes.size == (16, 12)
    assert set(np.unique(np.asarray(codes))) <= {0, 3, 200}


def test_a_pool_is_loaded_no_finer_than_needed(tmp_path: Path):
    table = TABLE | {"split": {"train": ["a_1", "b_1"]}}
    labelled = LabelledSet.read(_write(tmp_path / "small", table), ISPRS)
    pool = Pool.load(labelled, Source(set="small"), 0.2, SCALING, np.random.default_rng(0))
    assert [frame.size for frame in pool.frames] == [(3, 2), (6, 4)]
    assert [(frame.pixel_m, frame.native_m) for frame in pool.frames] == [(0.2, 0.1), (0.3, 0.3)]
    assert pool.areas.sum() == pytest.approx(1)
    assert not pool.holders
