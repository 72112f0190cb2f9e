"""Begin with the weights of another model, whose classes and bands may differ."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from geoseg import models
from geoseg.card import ModelCard
from geoseg.deepness import is_onnx
from geoseg.errors import OptionsError
from geoseg.legend import Legend

_log = logging.getLogger(__name__)

Pairs = Sequence[tuple[int, int]]
"""Places in the new network, and in the old one, of what both have."""
Places = npt.NDArray[np.intp]
Shape = tuple[int, ...]


def find_base(model: str) -> tuple[ModelCard, Path]:
    """The card and the weights of a model to begin with.

    Raises:
        CardError: if there is no such model.
        OptionsError: if it is an ONNX file.
    """
    place = models.locate(model)
    if is_onnx(place):
        raise OptionsError(f"{model}: an ONNX file cannot be trained further; name a model folder of geoseg")
    return ModelCard.read(place)


def begin_with(
    network: nn.Module,
    model: str,
    architecture: str,
    options: Mapping[str, Any],
    bands: Sequence[str],
    legend: Legend,
    *,
    make: Callable[[int, int], nn.Module],
    defaults: Mapping[str, Any],
) -> None:
    """Load the weights of a model; classes and bands that it does not have begin fresh.

    Rows of the last layer belong to classes and are taken over by name; kernels of the first belong to bands, likewise. A new class keeps
    its random weights, a new band gets kernels of zero, so that the network begins with the old model's answers.

    Args:
        network: to load into, of ``bands`` and ``legend``.
        model: name or folder.
        architecture: of the network.
        options: of the network.
        bands: of its input.
        legend: of its output.
        make: the same network for other numbers of bands and classes.
        defaults: what options are that are not said.

    Raises:
        CardError: if there is no such model, or its weights are not those of its card.
        OptionsError: if it is another network, or has no band in common.
    """
    card, weights = find_base(model)
    card.check(weights)
    _check(card, model, architecture, options, bands, defaults)
    old, new = load_file(weights), network.state_dict()
    names = [c.name for c in legend.classes]
    classes = _common(names, [c.name for c in card.legend.classes])
    channels = _common(bands, card.bands)
    count = (len(bands), len(legend))
    shapes, more_bands, more_classes = (_shapes(make, *each) for each in (count, (count[0] + 1, count[1]), (count[0], count[1] + 1)))
    missing = [key for key in old if key not in new]
    if missing:
        raise OptionsError(
            f"{model}: has {missing[0]!r} and {len(missing) - 1} more that {architecture!r} does not have; is it the same one?"
        )
    known = [key for key in new if key in old]
    with torch.no_grad():
        for key in known:
            rows = _places(old[key], shapes[key], (more_bands[key], channels, count[0]), (more_classes[key], classes, count[1]))
            if rows is None:
                raise OptionsError(
                    f"{model}: {key!r} is {tuple(old[key].shape)}, {architecture!r} with these options has {tuple(new[key].shape)}; "
                    "they must be the same network"
                )
            if more_bands[key] != shapes[key]:
                new[key].zero_()
            mine, theirs = (tuple(torch.from_numpy(each) for each in np.ix_(*(row[side] for row in rows))) for side in (0, 1))
            new[key][mine] = old[key][theirs].to(new[key].dtype)
    kept = [names[mine] for mine, _ in classes]
    fresh = [name for name in names if name not in kept]
    _log.info(
        "begins with %s %s: %d of %d tensors; %d of %d classes taken over%s%s",
        card.name,
        card.version,
        len(known),
        len(new),
        len(kept),
        len(names),
        f", fresh: {', '.join(fresh)}" if fresh else "",
        f"; bands at zero: {', '.join(sorted(set(bands) - set(card.bands)))}" if set(bands) - set(card.bands) else "",
    )


def begun_with(init: str | None, encoder_weights: str | None) -> list[str]:
    """What a card says of the weights at the beginning: one line for pretrained weights; for a model, also the lines of its own card."""
    if init is not None:
        card, _ = find_base(init)
        return [f"fine-tuned from: {card.name} {card.version}, sha256 {card.sha256}", *card.training_data]
    return [f"encoder, at first: {Path(encoder_weights).name}"] if encoder_weights else []


def _check(
    card: ModelCard, model: str, architecture: str, options: Mapping[str, Any], bands: Sequence[str], defaults: Mapping[str, Any]
) -> None:
    if card.architecture.lower() != architecture.lower():
        raise OptionsError(f"{model}: is a {card.architecture!r}, the recipe makes a {architecture!r}; leave model.architecture out")
    mine, theirs = (json.loads(json.dumps({**defaults, **each}, default=str)) for each in (options, card.options))
    for key in sorted(defaults):
        if mine[key] != theirs[key]:
            raise OptionsError(f"{model}: has the option {key} = {theirs[key]!r}, the recipe {mine[key]!r}; leave model.options out")
    if not set(bands) & set(card.bands):
        raise OptionsError(f"{model}: sees {', '.join(card.bands)}, the recipe {', '.join(bands)}: no band in common")


def _shapes(make: Callable[[int, int], nn.Module], bands: int, classes: int) -> dict[str, Shape]:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in make(bands, classes).state_dict().items()}


def _common(new: Sequence[str], old: Sequence[str]) -> Pairs:
    return [(place, old.index(name)) for place, name in enumerate(new) if name in old]


def _places(old: Tensor, shape: Shape, *kinds: tuple[Shape, Pairs, int]) -> list[tuple[Places, Places]] | None:
    """Places along each axis, in the new tensor and in the old one; None if they do not fit.

    Args:
        old: tensor of the old network.
        shape: of the new one.
        kinds: for bands, and for classes: the new one's shape with one more, which are common, and how many the new one has.
    """
    rows = []
    for axis, size in enumerate(shape if old.ndim == len(shape) else ()):
        grown = next(((more[axis] - size, pairs, count) for more, pairs, count in kinds if more[axis] != size), None)
        if grown is None:
            rows.append((np.arange(size), np.arange(size)))
            fits = size == old.shape[axis]
        else:
            each, pairs, count = grown
            rest = size - each * count  # such as a background before the classes
            rows.append((_blocks([new for new, _ in pairs], rest, each), _blocks([before for _, before in pairs], rest, each)))
            fits = old.shape[axis] >= rest and (old.shape[axis] - rest) % each == 0 and bool((rows[-1][1] < old.shape[axis]).all())
        if not fits:
            return None
    return rows if old.ndim == len(shape) else None


def _blocks(numbers: Sequence[int], rest: int, each: int) -> Places:
    """Places of what comes before the classes (or bands), and of these."""
    return np.array([*range(rest), *(rest + number * each + k for number in numbers for k in range(each))], np.intp)
