"""Each network learns one picture by heart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.windows import Window
from torch import Tensor
from torch.nn import functional

from geoseg.confusion import Confusion
from geoseg.networks import build, names

DEMO = Path(__file__).parents[1] / "demo" / "banepa.tif"
SIDE, CLASSES, AIM = 128, 3, 0.95

# Options that make the network small and keep it from forgetting on purpose, pixels a side of the cells of its labels, and steps
BY_HEART: dict[str, tuple[dict[str, Any], int, int]] = {
    "deeplabv1": ({"width": 1 / 8, "dropout": 0.0}, 16, 300),
    "deeplabv2": ({"width": 1 / 8}, 16, 300),
    "deeplabv3": ({"encoder_name": "resnet18", "decoder_channels": 64, "decoder_aspp_dropout": 0.0}, 16, 600),
    "deeplabv3_resnet101": ({"width": 1 / 8, "multi_grid": (1, 2, 4), "output_stride": 16}, 16, 300),
    "deeplabv3_resnet50": ({"width": 1 / 8}, 8, 300),
    "deeplabv3plus": ({"encoder_name": "resnet18", "decoder_channels": 64, "decoder_aspp_dropout": 0.0}, 8, 300),
    "dilated": ({"width": 1 / 8, "dropout": 0.0, "padding": "same", "context": "basic"}, 8, 300),
    "dpt": (
        {
            "encoder_name": "tu-vit_tiny_patch16_224",
            "decoder_intermediate_channels": [32, 32, 32, 32],
            "decoder_fusion_channels": 32,
        },
        16,
        600,
    ),
    "fcn16s": ({"width": 1 / 8, "dropout": 0.0}, 16, 300),
    "fcn32s": ({"width": 1 / 8, "dropout": 0.0}, 32, 300),
    "fcn8s": ({"width": 1 / 8, "dropout": 0.0}, 8, 300),
    "fcn_resnet101": ({"width": 1 / 8}, 8, 300),
    "fcn_resnet50": ({"width": 1 / 8}, 8, 300),
    "fcn_resnet50_skip": ({"width": 1 / 4}, 16, 600),
    "fpn": ({"encoder_name": "resnet18", "decoder_dropout": 0.0}, 8, 300),
    "gcn": ({"width": 1 / 8, "depth": 50}, 8, 300),
    "linknet": ({"encoder_name": "resnet18"}, 8, 300),
    "manet": ({"encoder_name": "resnet18"}, 8, 300),
    "pan": ({"encoder_name": "resnet18"}, 16, 600),
    "pspnet": ({"encoder_name": "resnet18", "psp_dropout": 0.0}, 16, 300),
    "refinenet": ({"width": 1 / 8, "depth": 50}, 8, 300),
    "segformer": ({"encoder_name": "mit_b0"}, 8, 600),
    "segnet": ({"width": 1 / 8}, 8, 300),
    "unet": ({"encoder_name": "resnet18"}, 8, 300),
    "unet_original": ({"width": 1 / 8, "dropout": 0.0}, 8, 300),
    "unetplusplus": ({"encoder_name": "resnet18"}, 8, 300),
    "upernet": ({"encoder_name": "resnet18", "decoder_channels": 64}, 8, 300),
}

# learn the picture and its mirror image: the batch norm of a mean over the image needs two of them
TWO = ("deeplabv3", "pan", "pspnet", "upernet")


def chip(cell: int) -> tuple[Tensor, Tensor]:
    """128 x 128 pixels of the demo scene, standardised, (1, 3, H, W), and labels (1, H, W): dark, medium, bright.

    Brightness is averaged over cells, interpolated bilinearly and cut at its terciles, so that a network whose scores have the resolution
    of the cells can draw the borders between the labels.
    """
    with rasterio.open(DEMO) as scene:
        pixels = torch.from_numpy(scene.read([1, 2, 3], window=Window(300, 300, SIDE, SIDE)).astype(np.float32))[None]
    pixels = (pixels - pixels.mean((2, 3), keepdim=True)) / pixels.std((2, 3), keepdim=True)
    coarse = functional.avg_pool2d(pixels.mean(1, keepdim=True), cell)
    brightness = functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear")[:, 0]
    return pixels, torch.bucketize(brightness, torch.quantile(brightness, torch.tensor([1 / 3, 2 / 3])))


def miou(network: torch.nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """Mean IoU over all classes, in evaluation mode."""
    with torch.inference_mode():
        answer = network.eval()(pixels).argmax(1)
    network.train()
    return float(Confusion.of(labels.numpy(), answer.numpy(), CLASSES, CLASSES).iou(np.eye(CLASSES, dtype=bool)).mean())


def test_no_network_is_left_out() -> None:
    assert set(BY_HEART) == set(names())


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_HEART)
def test_one_picture_is_learnt_by_heart(name: str) -> None:
    options, cell, steps = BY_HEART[name]
    torch.manual_seed(0)
    network = build(name, 3, CLASSES, **options).train()
    pixels, labels = chip(cell)
    if name.startswith(TWO):
        pixels, labels = (torch.cat([each, each.flip(-1)]) for each in (pixels, labels))
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    reached = 0.0
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        functional.cross_entropy(network(pixels), labels).backward()
        optimizer.step()
        if step % 20 == 0 and (reached := miou(network, pixels, labels)) >= AIM:
            break
    assert reached >= AIM
