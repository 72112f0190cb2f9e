"""The learning rate at which the loss falls most steeply, found by trying."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.tuner.tuning import Tuner
from PIL import Image, ImageDraw, ImageFont
from torch.utils.data import Dataset

from geoseg.errors import OptionsError
from geoseg.training.data import loader
from geoseg.training.loop import Learning
from geoseg.training.recipe import Recipe

_CURVE = "learning_rate.png"
_TRIES, _LOWEST, _HIGHEST = 100, 1e-7, 1.0
_WIDTH, _HEIGHT, _RIM = 900, 540, 70


def find_rate(module: Learning, batches: Callable[[int, int], Dataset[Any]], options: Recipe, out: Path) -> tuple[float, Path]:
    """Raise the learning rate from batch to batch, after Smith 2017 (arXiv:1506.01186); nothing of what is learnt stays.

    Args:
        module: that learns.
        batches: gives so many batches from the first one on.
        options: the recipe.
        out: folder of the curve ``learning_rate.png``.

    Returns:
        the rate, and the path of the curve.

    Raises:
        OptionsError: if the loss does not fall.
    """
    count = _TRIES * options.schedule.accumulate
    with tempfile.TemporaryDirectory() as folder:
        run = pl.Trainer(
            default_root_dir=folder,
            accelerator="auto",
            devices=1,
            precision=options.multiplied_in,
            accumulate_grad_batches=options.schedule.accumulate,
            gradient_clip_val=5.0,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        found: Any = Tuner(run).lr_find(
            module,
            loader(batches(0, count), options, range(count)),
            min_lr=_LOWEST,
            max_lr=_HIGHEST,
            num_training=_TRIES,
            update_attr=False,
        )
    rates, losses = found.results["lr"], found.results["loss"]
    suggestion = found.suggestion()
    if suggestion is None:
        raise OptionsError(f"no learning rate from {_LOWEST} to {_HIGHEST} lets the loss fall; look at the chips with --dry-run")
    out.mkdir(parents=True, exist_ok=True)
    _draw(out / _CURVE, rates, losses, suggestion)
    return float(suggestion), out / _CURVE


def _draw(path: Path, rates: Sequence[float], losses: Sequence[float], suggestion: float) -> None:
    """Loss over the logarithm of the rate, with a mark at the suggestion."""
    known = [(math.log10(rate), loss) for rate, loss in zip(rates, losses, strict=True) if math.isfinite(loss)]
    low = min(loss for _, loss in known)
    high = max(min(max(loss for _, loss in known), 3 * known[0][1]), low + 1e-9)  # what explodes leaves the picture

    def at(power: float, loss: float) -> tuple[float, float]:
        across = (power - math.log10(_LOWEST)) / (math.log10(_HIGHEST) - math.log10(_LOWEST))
        up = min((loss - low) / (high - low), 1.0)
        return _RIM + across * (_WIDTH - 2 * _RIM), _HEIGHT - _RIM - up * (_HEIGHT - 2 * _RIM)

    canvas = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(16)
    for power in range(round(math.log10(_LOWEST)), round(math.log10(_HIGHEST)) + 1):
        x, floor = at(power, low)
        draw.line((x, _RIM, x, floor), fill="#dddddd")
        draw.text((x, floor + 8), f"1e{power}", font=font, fill="#555555", anchor="ma")
    for loss in (low, high):
        draw.text((_RIM - 8, at(0, loss)[1]), f"{loss:.3g}", font=font, fill="#555555", anchor="rm")
    x = at(math.log10(suggestion), low)[0]
    draw.line((x, _RIM, x, _HEIGHT - _RIM), fill="#cc3311", width=2)
    draw.line([at(*each) for each in known], fill="#0b5fa5", width=3)
    draw.text((_RIM, _RIM // 2), f"Loss over learning rate; the line is at {suggestion:.2g}", font=font, fill="black", anchor="lm")
    canvas.save(path)
