"""What the architectures are, how large, and how far they look."""

from __future__ import annotations

import inspect
import re
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from geoseg.errors import CardError
from geoseg.networks import build, maskrcnn
from geoseg.networks.reach import KNOWN
from geoseg.networks.registry import ARCHITECTURES, Architecture
from geoseg.options import nearest

BANDS, CLASSES, SIDE = 3, 21, 512
PROPOSALS = 1000
"""Boxes of a tile that the box head of Mask R-CNN is asked about, at most."""

Facts = dict[str, Any]

_ALL = ARCHITECTURES | maskrcnn.ARCHITECTURES
_BULLETS = re.compile(r"(?<=\.) [^.]*:$")  # announced at the end of a paragraph, and left out
_BREAK = re.compile(r"\n\s*\n|\n\s*(?=\d\. |- )")


def networks() -> list[Facts]:
    """Facts of every architecture, the oldest first.

    Returns:
        a table each, see :func:`facts`.
    """
    return sorted(map(facts, _ALL), key=lambda each: (each["year"], each["name"]))


def facts(name: str) -> Facts:
    """Facts of an architecture with its default options, for 3 bands and 21 classes; nothing is computed, only counted.

    Args:
        name: of the architecture, in any case.

    Returns:
        JSON-able: ``name``, ``title``, ``authors``, ``year``, ``paper``, ``reference``, ``kind``, ``answers`` (``classes`` or
        ``instances``), ``parameters``, ``gflop_per_mpx`` (10^9 operations for 10^6 pixels in tiles of 512 x 512, a multiplication and an
        addition being two; of Mask R-CNN with 1000 proposals in each tile, without the masks of what is found), ``stride`` (pixels) and
        ``reach`` (pixels, None if unbounded; of Mask R-CNN that of its proposals).

    Raises:
        CardError: if there is no such architecture.
    """
    found = _find(name)
    parameters, operations, stride = _counted(found.name)
    return {
        "name": found.name,
        "title": found.title,
        "authors": found.authors,
        "year": found.year,
        "paper": found.paper,
        "reference": found.reference,
        "kind": found.kind,
        "answers": "classes" if found.name in ARCHITECTURES else "instances",
        "parameters": parameters,
        "gflop_per_mpx": round(operations / SIDE**2 / 1e3, 1),
        "stride": stride,
        "reach": KNOWN[found.name],
    }


def described(name: str) -> Facts:
    """The same facts, and what the architecture is in words.

    Args:
        name: of the architecture, in any case.

    Returns:
        :func:`facts`, ``about`` (paragraphs), and ``options`` (of each, its ``default`` and what it is ``about``).

    Raises:
        CardError: if there is no such architecture.
    """
    found = _find(name)
    text = _plain(inspect.getdoc(found.maker) or "")
    about, _, rest = text.partition("\nArgs:\n")
    said = {
        key: _BULLETS.sub("", " ".join(words.split())) for key, words in re.findall(r"^    (\w+): +(.*(?:\n {5,}.*)*)", rest, re.MULTILINE)
    }
    options = {key: {"default": default, "about": said.get(key, "")} for key, default in found.options.items()}
    return {**facts(name), "about": [" ".join(part.split()) for part in re.split(_BREAK, about.strip())], "options": options}


def _find(name: str) -> Architecture:
    """The architecture of a name, in any case."""
    if name.lower() not in _ALL:
        raise CardError(f"unknown architecture {name!r}; {nearest(name.lower(), _ALL)}")
    return _ALL[name.lower()]


@cache
def _counted(name: str) -> tuple[int, int, int]:
    """Parameters, operations for one tile, and stride; counted on shapes alone."""
    with torch.device("meta"):
        network: Any = (build if name in ARCHITECTURES else maskrcnn.build)(name, BANDS, CLASSES).eval()
        pixels = torch.empty(1, BANDS, SIDE, SIDE)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if name in ARCHITECTURES:
            network(pixels)
        else:
            _propose_and_judge(network, pixels)
    return sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops(), network.stride


def _propose_and_judge(network: Any, pixels: torch.Tensor) -> None:
    """Those parts of a Mask R-CNN whose work does not depend on what is found."""
    network.rpn.head(list(network.backbone(pixels).values()))
    heads = network.roi_heads
    boxes = torch.empty(PROPOSALS, network.backbone.out_channels, *heads.box_roi_pool.output_size, device=pixels.device)
    heads.box_predictor(heads.box_head(boxes))


def _plain(text: str) -> str:
    """A docstring without its markup."""
    return re.sub(r"(?::\w+:)?`+([^`]*)`+_*", r"\1", text).replace("**", "")
