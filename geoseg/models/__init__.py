"""Models that ship with geoseg, and where to find others."""

from __future__ import annotations

import os
from pathlib import Path

from geoseg import deepness
from geoseg.card import CARD_NAME, ModelCard
from geoseg.errors import CardError


def folders() -> dict[str, Path]:
    """Model folders by name: those in the package, and those in the folder that GEOSEG_MODELS names."""
    places = [Path(__file__).parent, *([Path(os.environ["GEOSEG_MODELS"])] if os.environ.get("GEOSEG_MODELS") else [])]
    return {card.parent.name: card.parent for place in places for card in sorted(place.glob(f"*/{CARD_NAME}"))}


def locate(model: str | Path) -> Path:
    """The folder, or the ONNX file, of a model given by name or path.

    Raises:
        CardError: if there is none.
    """
    known = folders()
    if str(model) in known:
        return known[str(model)]
    if Path(model).exists():
        return Path(model)
    raise CardError(f"model {str(model)!r}: no such folder, and no model of that name; known are {', '.join(known) or 'none'}")


def read(model: str | Path) -> tuple[ModelCard, Path]:
    """The card of a model folder, or of an ONNX file that carries its own facts, and the path of the weights.

    Raises:
        CardError: if there is no model, or a fact is missing.
        OptionsError: if it is an ONNX file and the package onnx is missing.
    """
    if deepness.is_onnx(model):
        return deepness.read(model).card, Path(model)
    return ModelCard.read(model)


def cards() -> dict[str, ModelCard]:
    """Cards of all known models by name."""
    return {name: read(folder)[0] for name, folder in folders().items()}
