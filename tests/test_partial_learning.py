"""Where every label leaves several classes open, all of them are still learnt."""

from __future__ import annotations

import itertools

import pytest
import torch

from geoseg.losses import PartialLabelLoss, balanced_weights

K = 4
NOT_ONE = ~torch.eye(K, dtype=torch.bool)
TWO = torch.zeros(K * (K - 1) // 2, K, dtype=torch.bool)
for row, pair in enumerate(itertools.combinations(range(K), 2)):
    TWO[row, list(pair)] = True
ALLOWED = torch.cat([torch.zeros(1, K, dtype=torch.bool), NOT_ONE, TWO])
"""Code 0 is unlabelled, then "not X" of each class, then "X or Y" of each pair."""


def scenes(generator: torch.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy pixels (N, 3, 24, 24), their classes, and a code that allows the class, one at random for each cell of 6 x 6 pixels."""
    classes = torch.randint(0, K, (count, 4, 4), generator=generator)
    colours = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0.6, 0.6, 0.6]])
    fits = ALLOWED[:, classes].permute(1, 2, 3, 0).float()  # (N, 4, 4, C)
    codes = torch.multinomial(fits.flatten(0, 2), 1, generator=generator).reshape(classes.shape)
    classes, codes = (each.repeat_interleave(6, 1).repeat_interleave(6, 2) for each in (classes, codes))
    pixels = colours[classes].permute(0, 3, 1, 2)
    return pixels + 0.25 * torch.randn(pixels.shape, generator=generator), classes, codes


@pytest.mark.parametrize("push", [True, False])
def test_all_classes_are_learnt_from_what_pixels_are_not_and_what_they_may_be(push: bool):
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, K, 1))
    pixels, _, codes = scenes(generator, 16)
    assert not (ALLOWED[codes].sum(-1) == 1).any()
    shares = torch.bincount(codes.flatten(), minlength=len(ALLOWED)).double() / codes.numel()
    loss = PartialLabelLoss(ALLOWED, balanced_weights(shares, ALLOWED, power=0.5, ambiguous=0.5), push=push)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.02)
    for _ in range(120):
        optimizer.zero_grad()
        loss(network(pixels), codes).backward()
        optimizer.step()
    pixels, classes, _ = scenes(generator, 16)
    with torch.inference_mode():
        found = network(pixels).argmax(1)
    for number in range(K):
        assert (found[classes == number] == number).float().mean() >= 0.95
