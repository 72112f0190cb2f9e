import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from skimage import measure
from torch.nn import functional

from geoseg.losses import PartialLabelLoss, SummedLoss, balanced_weights, border_weights, partial_cross_entropy

K = 5
LOGITS = arrays.arrays(np.float32, (2, K, 3, 4), elements=st.floats(-20, 20, width=32))
SINGLE = torch.vstack([torch.zeros(1, K, dtype=torch.bool), torch.eye(K, dtype=torch.bool)])
SETS = arrays.arrays(bool, (7, K), elements=st.booleans()).filter(lambda sets: sets.any(1).all())


@given(LOGITS, arrays.arrays(np.uint8, (2, 3, 4), elements=st.integers(1, K)), st.booleans())
def test_single_classes_give_cross_entropy_and_its_gradient(logits, labels, push):
    ours, theirs = (torch.tensor(logits, requires_grad=True) for _ in range(2))
    loss = PartialLabelLoss(SINGLE, push=push)(ours, torch.from_numpy(labels))
    expected = functional.cross_entropy(theirs, torch.from_numpy(labels).long() - 1)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@given(arrays.arrays(np.float32, (7, K), elements=st.floats(-20, 20, width=32)), SETS)
def test_the_loss_is_minus_log_of_the_allowed_probability(logits, sets):
    loss = partial_cross_entropy(torch.from_numpy(logits), torch.from_numpy(sets)).numpy()
    scores = torch.from_numpy(logits).double().softmax(1).numpy()
    np.testing.assert_allclose(loss, -np.log((scores * sets).sum(1)), atol=1e-4, rtol=1e-4)
    assert (loss >= -1e-5).all()


@given(arrays.arrays(np.float64, (7, K), elements=st.floats(-20, 20)), SETS)
def test_the_gradient_is_that_of_the_explicit_sum(logits, sets):
    ours, theirs = torch.tensor(logits, dtype=torch.float32, requires_grad=True), torch.tensor(logits, requires_grad=True)
    allowed = torch.from_numpy(sets)
    partial_cross_entropy(ours, allowed).sum().backward()
    (-torch.log((theirs.softmax(1) * allowed).sum(1))).sum().backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-5)


@given(arrays.arrays(np.float32, (7, K), elements=st.floats(-5, 5, width=32)), SETS)
def test_push_moves_only_what_is_ruled_out(logits, sets):
    rows = torch.tensor(logits, requires_grad=True)
    allowed = torch.from_numpy(sets)
    loss = partial_cross_entropy(rows, allowed, push=True)
    torch.testing.assert_close(loss, partial_cross_entropy(rows, allowed))
    loss.sum().backward()
    several = allowed.sum(1) > 1
    assert (rows.grad[several][allowed[several]] == 0).all()
    assert (rows.grad[~allowed] > 0).all()


@settings(max_examples=20)
@given(LOGITS, st.booleans())
def test_unlabelled_pixels_give_no_loss_and_no_gradient(logits, push):
    loss = PartialLabelLoss(SINGLE, push=push)
    pixels = torch.tensor(logits, requires_grad=True)
    labels = torch.zeros(2, 3, 4, dtype=torch.uint8)
    nothing = loss(pixels, labels)
    nothing.backward()
    assert nothing == 0
    assert (pixels.grad == 0).all()
    labels[0, 0, 0] = 2
    pixels.grad = None
    loss(pixels, labels).backward()
    assert (pixels.grad[1] == 0).all()
    assert (pixels.grad[0, :, 1:] == 0).all()


def test_weights_average_over_codes():
    logits = torch.randn(1, K, 2, 2)
    labels = torch.tensor([[[1, 2], [2, 2]]])
    loss = PartialLabelLoss(SINGLE, torch.tensor([9.0, 3.0, 1.0, 0, 0, 0]))(logits, labels)
    each = functional.cross_entropy(logits, labels - 1, reduction="none").flatten()
    torch.testing.assert_close(loss, (3 * each[0] + each[1:].sum()) / 6)


@pytest.mark.parametrize(("power", "expected"), [(0.0, 1.0), (1.0, 4.0), (0.5, 2.0)])
def test_balanced_weights(power, expected):
    shares = torch.tensor([0.0, 0.2, 0.05, 0.0, 0.0, 0.0, 0.75])
    allowed = torch.vstack([SINGLE, torch.tensor([[True, True, False, False, False]])])
    weights = balanced_weights(shares, allowed, power=power, ambiguous=0.5)
    torch.testing.assert_close(weights[1], torch.tensor(1.0))
    torch.testing.assert_close(weights[2], torch.tensor(expected))
    torch.testing.assert_close(weights[6], torch.tensor(0.5 * (1 / (5 * 0.75)) ** power))
    assert weights[[0, 3, 4, 5]].sum() == 0


BESIDE = ("focal", "dice", "jaccard", "tversky", "lovasz", "ohem")


def _explicit(name, rows, classes):
    """The loss of (n, K) logits, from its paper, in numpy."""
    scores = np.exp(rows - rows.max(1, keepdims=True))
    scores /= scores.sum(1, keepdims=True)
    truth = np.eye(K)[classes]
    both, ours, theirs = (scores * truth).sum(0), scores.sum(0), truth.sum(0)
    if name == "focal":
        chance = 1 / (1 + np.exp(-rows))
        right = np.where(truth == 1, chance, 1 - chance)
        return (-((1 - right) ** 2) * np.log(right)).mean()
    if name == "ohem":
        losses = np.sort(-np.log(scores[np.arange(len(rows)), classes]))[::-1]
        return losses[: max(1, round(len(rows) / 4))].mean()
    if name == "lovasz":
        parts = []
        for k in range(K):
            if theirs[k]:
                order = np.argsort(-np.abs(truth[:, k] - scores[:, k]), kind="stable")
                errors, hits = np.abs(truth[:, k] - scores[:, k])[order], truth[order, k]
                jaccard = 1 - (theirs[k] - hits.cumsum()) / (theirs[k] + (1 - hits).cumsum())
                parts.append((errors * np.diff(jaccard, prepend=0)).sum())
        return np.mean(parts)
    below = {"dice": (ours + theirs) / 2, "jaccard": ours + theirs - both, "tversky": both + 0.3 * (ours - both) + 0.7 * (theirs - both)}[
        name
    ]
    return np.where(theirs > 0, 1 - both / below, 0).mean()


@pytest.mark.parametrize("name", BESIDE)
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_terms_are_what_their_papers_say(name, seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0, 2, (2, K, 3, 4)), rng.integers(0, K + 2, (2, 3, 4))
    allowed = torch.vstack([SINGLE, torch.ones(1, K, dtype=torch.bool)])  # code 0 is unlabelled, the last allows all
    ours = SummedLoss(PartialLabelLoss(allowed), {name: 2.0})(torch.from_numpy(logits), torch.from_numpy(labels))
    counted = (labels > 0) & (labels <= K)
    rows = logits.transpose(0, 2, 3, 1)[counted]
    expected = 2 * _explicit(name, rows, labels[counted] - 1) if counted.any() else 0
    assert ours.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_losses_add_up_and_nothing_labelled_is_nothing_lost():
    torch.manual_seed(0)
    logits = torch.randn(2, K, 3, 4, requires_grad=True)
    labels, partial = torch.randint(1, K + 1, (2, 3, 4)), PartialLabelLoss(SINGLE)
    terms = {"partial": 0.5, **dict.fromkeys(BESIDE, 0.3)}
    single = sum(SummedLoss(partial, {name: weight})(logits, labels) for name, weight in terms.items())
    torch.testing.assert_close(SummedLoss(partial, terms)(logits, labels), single)
    assert torch.equal(SummedLoss(partial, {"partial": 1.0})(logits, labels), partial(logits, labels))
    SummedLoss(partial, terms)(logits, labels * 0).backward()
    assert not logits.grad.any()


def _parts(classes, number):
    """(P, H, W) distance of every pixel to each connected part of a class, by trying all its pixels."""
    parts = measure.label(classes == number, connectivity=1, background=0)
    y, x = np.mgrid[: classes.shape[0], : classes.shape[1]]
    spots = [np.argwhere(parts == part) for part in range(1, parts.max() + 1)]
    return np.array([np.hypot(y[..., None] - spot[:, 0], x[..., None] - spot[:, 1]).min(-1) for spot in spots])


def _between(classes):
    """Equation 2 of Ronneberger et al. without the class weight, as an explicit sum."""
    best = np.zeros(classes.shape)
    for number in set(classes[classes >= 0].tolist()):
        parts = _parts(classes, number)
        if len(parts) > 1:
            first, second = np.sort(parts, 0)[:2]
            best = np.where(classes == number, best, np.maximum(best, 10 * np.exp(-((first + second) ** 2) / 50)))
    return best


@given(st.integers(0, 2**32 - 1), st.floats(0.6, 0.99))
@settings(max_examples=15)
def test_between_two_objects_weights_are_those_of_the_paper(seed, empty):
    rng = np.random.default_rng(seed)
    classes = rng.choice([0, 1, 2, -1], (2, 30, 45), p=[empty, *[(1 - empty) / 3] * 3])
    np.testing.assert_allclose(border_weights(classes), [_between(image) for image in classes], atol=5e-3)


def test_the_border_term_is_the_sum_of_the_paper():
    rng = np.random.default_rng(0)
    labels = np.ones((2, 24, 24), int)
    labels[:, 4:14, 3:9], labels[:, 4:14, 11:20], labels[1, :3] = 2, 2, 0
    logits = torch.from_numpy(rng.normal(0, 2, (2, K, 24, 24))).requires_grad_()
    partial = PartialLabelLoss(SINGLE, torch.tensor([1.0, 2.0, 3.0, 1, 1, 1]))
    loss = SummedLoss(partial, {"border": 0.5})(logits, torch.from_numpy(labels))
    each = functional.cross_entropy(logits.float(), torch.from_numpy(labels - 1), reduction="none", ignore_index=-1)
    plain = np.array([0.0, 2, 3])[labels]
    weights = plain + np.array([_between(image - 1) for image in labels])
    assert weights[0, 8, 9] > 2 + 8  # a gap of two pixels
    assert loss.item() == pytest.approx(0.5 * (weights * each.detach().numpy()).sum() / plain.sum(), rel=1e-4)
    loss.backward()
    assert logits.grad[0, :, 8, 9].abs().sum() > 0
    assert not logits.grad[1, :, :3].any()
