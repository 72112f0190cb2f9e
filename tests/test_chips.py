import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import map_coordinates, maximum_filter, minimum_filter

from geoseg.card import Scaling
from geoseg.chips import ChipOptions, Chips, Frame, Pool, Source, cut, ranged, resized, standardised, vary
from geoseg.chips.variation import _turned
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


BEND = np.random.default_rng(7).uniform(-3, 3, (2, 5, 5))


@given(st.floats(0, 7), st.floats(0.5, 2), st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_a_bent_chip_has_one_geometry(angle, step, seed):
    labels = np.kron(np.random.default_rng(seed).integers(1, 7, (5, 5)), np.ones((12, 12))).astype(np.uint8)
    frame = _frame(labels)
    known = Image.fromarray(np.where(np.arange(60) < 20, 0, 255)[:, None].repeat(60, 1).astype(np.uint8))
    frame = Frame(frame.pixels, frame.labels, 0.2, 0.2, {}, known)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    pixels, codes, inside = cut(frame, (30.0, 30.0), step, turn, 40, BEND)
    y, x = np.mgrid[0.5:40, 0.5:40]
    shift = np.array([map_coordinates(each, [y / 10, x / 10], order=1) for each in BEND])
    places = np.tensordot(turn * step, np.array([x - 20, y - 20]) + shift, 1) + 30
    truth = map_coordinates(labels, places[::-1] - 0.5, order=0, mode="nearest")
    there = (places >= 0).all(0) & (places < 60).all(0) & (places[1] > 20)
    assert (inside != there).mean() < 0.06  # where the mask is between known and unknown
    assert not inside[~there].any()
    assert (codes != np.where(inside, truth, 0)).mean() < 0.01  # but for rounding at ties
    flat = inside & (maximum_filter(codes, 7) == codes) & (minimum_filter(codes, 7) == codes)
    assert (pixels[:, flat] == codes[flat] * 10).all()
    straight, bent = (cut(frame, (30.0, 30.0), step, turn, 40, each) for each in (None, BEND * 0))
    assert (straight[1] != bent[1]).mean() < 0.01
    assert (straight[2] != bent[2]).mean() < 0.01


def test_elastic_chips_keep_to_their_largest_shift_and_do_not_fold():
    y, x = np.mgrid[:200, :200].astype(np.float32)
    frame = Frame((Image.fromarray(x), Image.fromarray(y)), Image.fromarray(np.ones((200, 200), np.uint8)), 0.2, 0.2, {})
    pool = Pool((frame,), 1.0, np.ones(1), {})
    scaling = Scaling(dtype="float32", low=0, high=1000, percentiles=(2, 98), mean=(0.0, 0.0), std=(1.0, 1.0))
    options = PLAIN.model_copy(update={"size": 60, "batch": 8, "elastic": 6.0})
    plain = options.model_copy(update={"elastic": 0.0})
    for seed in range(3):
        values, codes = Chips([pool], options, scaling, 0.2, seed=seed)[0]
        bent, there = values[0] * 1000, codes[0, :-1, :-1].bool() & codes[0, 1:, :-1].bool() & codes[0, :-1, 1:].bool()
        steps = torch.stack([bent.diff(dim=1)[:, :, :-1], bent.diff(dim=2)[:, :-1]])  # towards the next row and column, (2, 2, H, W)
        area = steps[0, 0] * steps[1, 1] - steps[0, 1] * steps[1, 0]
        assert there.float().mean() > 0.5
        assert (area[there] > 0.05).all() or (area[there] < -0.05).all()
        straight = Chips([pool], plain, scaling, 0.2, seed=seed)[0][0][0] * 1000
        assert not torch.equal(straight, bent)
    with pytest.raises(ValueError, match="at most a tenth of size"):
        ChipOptions(size=60, batch=1, scale=(1, 1), elastic=7)


def test_hues_turn_around_grey():
    rng = np.random.default_rng(0)
    pixels = rng.integers(80, 120, (3, 16, 16)).astype(np.uint8)
    options = PLAIN.model_copy(update={"hue": 0.5})
    turned = [vary(pixels, SCALING, options, np.random.default_rng(seed)) for seed in range(4)]
    plain = vary(pixels, SCALING, PLAIN, np.random.default_rng(0))
    for values in turned:
        np.testing.assert_allclose(values.mean(0), plain.mean(0), atol=1e-5)
        np.testing.assert_allclose(values.std(0), plain.std(0), atol=1e-5)
        assert np.abs(values - plain).max() > 0.01
    red = np.zeros((3, 1, 1), np.uint8)
    red[0] = 255
    np.testing.assert_allclose(_turned(red / np.float32(255), 1 / 3)[:, 0, 0], [0, 1, 0], atol=1e-6)
    grey = np.full((3, 4, 4), 90, np.uint8)
    np.testing.assert_allclose(vary(grey, SCALING, options, rng), 90 / 255, atol=1e-6)


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_jpegs_leave_their_marks(bands):
    pixels = np.random.default_rng(0).integers(0, 256, (bands, 32, 32)).astype(np.uint8)
    scaling = SCALING.model_copy(update={"mean": (0.5,) * bands, "std": (0.2,) * bands})
    options = PLAIN.model_copy(update={"jpeg": 1.0})
    values = vary(pixels, scaling, options, np.random.default_rng(0))
    assert (values.shape, values.dtype) == (pixels.shape, np.float32)
    assert 0.005 < np.abs(values - pixels / 255).mean() < 0.3
    smooth = np.tile(np.arange(32, dtype=np.uint8) * 4, (bands, 32, 1))
    assert np.abs(vary(smooth, scaling, options, np.random.default_rng(0)) - smooth / 255).mean() < 0.03


def test_what_is_off_draws_no_chance():
    """Older recipes give the same chips: their generator is where it was before there were hue, JPEG and elastic."""
    rng, other = np.random.default_rng(0), np.random.default_rng(0)
    vary(np.zeros((3, 8, 8), np.uint8), SCALING, PLAIN, rng)
    other.uniform(-0.0, 0.0, 3)
    [other.uniform() for _ in range(4)]
    other.random()
    assert rng.bit_generator.state == other.bit_generator.state
