"""How far tiled predictions are from the prediction of the whole image in one pass.

    python -m benchmarks.stitch [--quick] [--json]

A U-Net/ResNet-18 is briefly trained on the demo scene to tell six grades of greenness and brightness of its slightly blurred
pixels, which needs no labels. A network that leans more on far context, or is less sure, differs more, with every taper: with
means of 17 x 17 pixels instead of 5 x 5, eight times as many pixels differ. Its classes of the whole
image in one pass, in fp32, are the reference; then the same image is tiled, 512 pixels with an overlap of 128, with every
taper. Counted are the pixels whose class differs: in the interior (320 pixels and more from the border) and in the outer
strip of 64 pixels, in per cent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import rasterio
import torch

from benchmarks.common import DEMO, hardware, make_model, parse, tell, workplace
from geoseg import networks
from geoseg.blend import TAPERS
from geoseg.card import ModelCard
from geoseg.engine import Options, make_plan, predict_block
from geoseg.segmenter import Segmenter
from geoseg.verbs.segment import ArraySource
from geoseg.window import Window

TILE, OVERLAP, INTERIOR, STRIP = 512, 128, 320, 64


def train(pixels: np.ndarray, labels: np.ndarray, steps: int) -> dict[str, torch.Tensor]:
    """Weights of a U-Net after some steps on crops of one image."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = networks.build("unet", bands=3, classes=6, encoder_name="resnet18").train().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    image = (torch.from_numpy(pixels).float() / 255 - 0.4) / 0.2
    truth = torch.from_numpy(labels.astype(np.int64)) - 1
    for _ in range(steps):
        corners = [(rng.integers(0, image.shape[1] - 256), rng.integers(0, image.shape[2] - 256)) for _ in range(8)]
        batch = torch.stack([image[:, r : r + 256, c : c + 256] for r, c in corners]).contiguous(memory_format=torch.channels_last)
        wanted = torch.stack([truth[r : r + 256, c : c + 256] for r, c in corners])
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(network(batch).float(), wanted, ignore_index=-1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    print(f"# {steps} steps, last loss {float(loss.detach()):.3f}")
    return network.eval().state_dict()


def grades(pixels: np.ndarray) -> np.ndarray:
    """Six classes ``(H, W)`` uint8, from 1: three grades of greenness times two of brightness, of 5 x 5 pixel means."""
    blurred = torch.nn.functional.avg_pool2d(torch.from_numpy(pixels).float(), 5, stride=1, padding=2, count_include_pad=False).numpy()
    brightness, greenness = blurred.mean(0), blurred[1] - (blurred[0] + blurred[2]) / 2
    green = np.digitize(greenness, np.quantile(greenness, [1 / 3, 2 / 3]))
    return (1 + 2 * green + (brightness > np.median(brightness))).astype(np.uint8)


def classes(pixels: np.ndarray, segmenter: Segmenter, options: Options) -> np.ndarray:
    """Tiled classes of an image, ``(H, W)`` uint8."""
    shape = (pixels.shape[1], pixels.shape[2])
    source = ArraySource(pixels, np.ones(shape, bool), Window.of(shape), shape)
    plan = make_plan(source, segmenter.card, options, pixel_m=None, stretch=None)
    segmenter.prepare((plan.tiling.tile, plan.tiling.tile))
    return np.concatenate([values[0] for _, values in predict_block(plan, Window.of(shape), segmenter)])


def measure(*, quick: bool) -> dict[str, Any]:
    """All tapers against the whole image."""
    side, steps = (1408, 24) if quick else (2432, 160)
    with rasterio.open(DEMO) as demo:
        pixels = demo.read(window=rasterio.windows.Window(0, 0, side, side))
    labels = grades(pixels)
    with workplace() as folder:
        model = make_model(
            folder / "m", "unet", {"encoder_name": "resnet18"}, stride=32, tile=TILE, overlap=OVERLAP, state=train(pixels, labels, steps)
        )
        segmenter = Segmenter.load(model, precision="fp32")
        card, _ = ModelCard.read(model)
    logits = segmenter.logits(pixels[None], np.ones((1, *pixels.shape[1:]), bool))[0]
    reference = np.array(card.legend.ids, np.uint8)[logits.argmax(0).numpy()]
    distance = np.minimum.reduce(np.meshgrid(*(np.minimum(np.arange(n), np.arange(n)[::-1]) for n in reference.shape), indexing="ij"))
    facts: dict[str, Any] = {"side": side, "classes_seen": len(np.unique(reference))}
    for taper in TAPERS:
        differs = classes(pixels, segmenter, Options(taper=taper)) != reference
        facts[f"{taper}_interior_pct"] = round(100 * float(differs[distance >= INTERIOR].mean()), 5)
        facts[f"{taper}_strip_pct"] = round(100 * float(differs[distance < STRIP].mean()), 5)
    default_taper = Options().taper
    return facts | {
        "default_taper": default_taper,
        "interior_pct": facts[f"{default_taper}_interior_pct"],
        "crop_pct": facts["box_interior_pct"],
        "hann_pct": facts["hann_interior_pct"],
        "strip_pct": facts[f"{default_taper}_strip_pct"],
        "hardware": hardware(),
    }


if __name__ == "__main__":
    arguments = parse(__doc__.splitlines()[0])
    tell(measure(quick=arguments.quick), arguments.json)
