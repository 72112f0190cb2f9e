"""What the architectures are, how large, and how far they look."""

from __future__ import annotations

import inspect
import re
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from geoseg.networks import build, find, names
from geoseg.networks.reach import KNOWN

BANDS, CLASSES, SIDE = 3, 21, 512

Facts = dict[str, Any]

_BULLETS = re.compile(r"(?<=\.) [^.]*:$")  # announced at the end of a paragraph, and left out
_BREAK = re.compile(r"\n\s*\n|\n\s*(?=\d\. |- )")


def networks() -> list[Facts]:
    """Facts of every architecture, the oldest first.

    Returns:
        a table each, see :func:`facts`.
    """
    return sorted(map(facts, names()), key=lambda each: (each["year"], each["name"]))


def facts(name: str) -> Facts:
    """Facts of an architecture with its default options, for 3 bands and 21 classes; nothing is computed, only counted.

    Args:
        name: of the architecture, in any case.

    Returns:
        JSON-able: ``name``, ``title``, ``authors``, ``year``, ``paper``, ``reference``, ``kind``, ``parameters``, ``gflop_per_mpx`` (10^9
        operations for 10^6 pixels in tiles of 512 x 512, a multiplication and an addition being two), ``stride`` (pixels) and ``reach``
        (pixels, None if unbounded).

    Raises:
        CardError: if there is no such architecture.
    """
    found = find(name)
    parameters, operations, stride = _counted(found.name)
    return {
        "name": found.name,
        "title": found.title,
        "authors": found.authors,
        "year": found.year,
        "paper": found.paper,
        "reference": found.reference,
        "kind": found.kind,
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
    found = find(name)
    text = _plain(inspect.getdoc(found.maker) or "")
    about, _, rest = text.partition("\nArgs:\n")
    said = {
        key: _BULLETS.sub("", " ".join(words.split())) for key, words in re.findall(r"^    (\w+): +(.*(?:\n {5,}.*)*)", rest, re.MULTILINE)
    }
    options = {key: {"default": default, "about": said.get(key, "")} for key, default in found.options.items()}
    return {**facts(name), "about": [" ".join(part.split()) for part in re.split(_BREAK, about.strip())], "options": options}


@cache
def _counted(name: str) -> tuple[int, int, int]:
    """Parameters, operations for one tile, and stride; counted on shapes alone."""
    with torch.device("meta"):
        network: Any = build(name, BANDS, CLASSES).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, BANDS, SIDE, SIDE, device="meta"))
    return sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops(), network.stride


def _plain(text: str) -> str:
    """A docstring without its markup."""
    return re.sub(r"(?::\w+:)?`+([^`]*)`+_*", r"\1", text).replace("**", "")
