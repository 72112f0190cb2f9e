"""Slow, obvious answers, and small models to ask for them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from geoseg import networks
from geoseg.card import CARD_NAME, WEIGHTS_NAME, ModelCard, Scaling
from geoseg.crf import DenseCRF
from geoseg.legend import Legend, LegendClass
from geoseg.segmenter import Segmenter


class Pointwise(torch.nn.Module):
    """A network whose answer at a pixel depends on that pixel alone."""

    stride = 1

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.mix = torch.nn.Conv2d(3, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(torch.sin(3 * x))


class Looking(torch.nn.Module):
    """A convolutional network that looks ``reach`` pixels far, on its own resolution."""

    stride = 1

    def __init__(self, classes: int = 4, reach: int = 3) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = [torch.nn.Conv2d(3, 8, 3, padding=1)]
        for _ in range(reach - 1):
            layers += [torch.nn.Tanh(), torch.nn.Conv2d(8, 8, 3, padding=1)]
        self.layers = torch.nn.Sequential(*layers, torch.nn.Conv2d(8, classes, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Pooling(Looking):
    """The same on a quarter of the resolution: what it says depends on where its pooling cells begin."""

    stride = 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        coarse = self.layers(torch.nn.functional.max_pool2d(x, 4))
        return torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")


def legend(classes: int = 4) -> Legend:
    """Classes with ids that are not their channel numbers."""
    return Legend(
        name="test",
        classes=tuple(
            LegendClass(id=10 + 3 * k, name=f"class_{k}", title=f"Class {k}", colour=f"#{40 * k + 20:02x}80{200 - 40 * k:02x}")
            for k in range(classes)
        ),
    )


def card(*, tile: int = 32, overlap: int = 8, stride: int = 1, classes: int = 4, **facts: Any) -> ModelCard:
    """A complete card; ``facts`` override it."""
    whole: dict[str, Any] = {
        "name": "test",
        "version": "1",
        "description": "For tests.",
        "architecture": "unet",
        "options": {},
        "parameters": 1,
        "bands": ("red", "green", "blue"),
        "scaling": Scaling(dtype="uint8", low=0, high=255, percentiles=(2, 98), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)),
        "resolution_m": 1.0,
        "tile": tile,
        "overlap": overlap,
        "stride": stride,
        "legend": legend(classes),
        "license": "CC0-1.0",
        "training_data": (),
        "scores": {},
        "sha256": "0" * 64,
    }
    return ModelCard(**(whole | facts))


def segmenter(network: torch.nn.Module, seed: int = 0, **facts: Any) -> Segmenter:
    """A seeded network as a segmenter in fp32 on the CPU."""
    torch.manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return Segmenter(card(stride=network.stride, **facts), network, device="cpu", precision="fp32")


def model_folder(folder: Path, **facts: Any) -> Path:
    """A real model folder: a small seeded network, a U-Net unless ``facts`` name another, whose weights give all classes."""
    torch.manual_seed(3)
    options = facts.get("options", {"encoder_name": "resnet18", "encoder_depth": 3, "decoder_channels": [16, 8, 8]})
    network = networks.build(facts.get("architecture", "unet"), bands=3, classes=4, **options)
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():  # scores that begin with zeros
            torch.nn.init.normal_(parameter, std=0.1)
    folder.mkdir(parents=True)
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / WEIGHTS_NAME)
    given: dict[str, Any] = {
        "tile": 64,
        "overlap": 16,
        "stride": 8,
        "options": options,
        "parameters": sum(p.numel() for p in network.parameters()),
        "sha256": hashlib.sha256((folder / WEIGHTS_NAME).read_bytes()).hexdigest(),
    }
    whole = card(**(given | facts))
    (folder / CARD_NAME).write_text(whole.to_json(), encoding="utf-8")
    return folder


def whole_scene_logits(model: Segmenter, pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Logits of the whole scene in one forward pass, padded below and right to the network's stride; ``(K, H, W)``."""
    height, width = valid.shape
    align = model.card.stride
    more = [(0, -height % align), (0, -width % align)]
    batch = np.pad(pixels, [(0, 0), *more])[None]
    known = np.pad(valid, more)[None]
    logits: np.ndarray = model.logits(batch, known)[0, :, :height, :width].float().numpy()
    return logits


def decided(model: Segmenter, logits: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Class ids of logits."""
    ids = np.array(model.card.legend.ids, np.uint8)
    return np.where(valid, ids[logits.argmax(0)], 0).astype(np.uint8)


def margin(logits: np.ndarray) -> np.ndarray:
    """Distance between the largest and the second largest logit: where it is tiny, rounding may decide."""
    top = np.sort(logits, axis=0)[-2:]
    distance: np.ndarray = top[1] - top[0]
    return distance


def crf_marginals(
    crf: DenseCRF, logits: np.ndarray, colours: np.ndarray, known: np.ndarray, appearance: np.ndarray | None = None
) -> np.ndarray:
    """Mean field over all pairs of the known pixels, ``(K, H, W)`` float64; O(N^2).

    ``appearance`` takes the place of the first kernel, ``(N, N)``.
    """
    place, colour = np.argwhere(known).astype(np.float64), colours[:, known].T.astype(np.float64)
    both = np.concatenate([place / crf.position_px, colour / crf.colour], 1)
    kernels = [_gaussian(both) if appearance is None else appearance, _gaussian(place / crf.smoothness_px)]
    unary = -logits[:, known].T.astype(np.float64)
    energy = unary
    for step in range(crf.iterations + 1):
        q = np.exp(energy.min(1, keepdims=True) - energy)
        q /= q.sum(1, keepdims=True)
        if step < crf.iterations:
            energy = unary.copy()
            for weight, kernel in zip((crf.appearance, crf.smoothness), kernels, strict=True):
                mass = np.sqrt(kernel.sum(1, keepdims=True))
                energy += weight * (1 - (kernel @ (q / mass)) / mass)  # Potts: what the other labels say
    whole = np.zeros(logits.shape)
    whole[:, known] = q.T
    return whole


def _gaussian(points: np.ndarray) -> np.ndarray:
    """``exp(-|a - b|^2 / 2)`` between all pairs of ``(N, d)`` points."""
    square = (points**2).sum(1)
    kernel = points @ points.T
    kernel -= square[:, None] / 2
    kernel -= square / 2
    return np.exp(kernel, out=kernel)
