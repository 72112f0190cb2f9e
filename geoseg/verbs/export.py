"""From a model to an ONNX file that the QGIS plugin Deepness runs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from geoseg import deepness
from geoseg.errors import CardError, OptionsError, OutputError
from geoseg.manifest import Facts, writing
from geoseg.models import locate
from geoseg.networks.graph import OPSET, to_onnx
from geoseg.segmenter import Segmenter, load_network

SAME = 0.9999
"""Share of the pixels whose class must be that of the model."""

_LEVELS = 8


def export(model: str | Path, onnx: str | Path, *, force: bool = False) -> Facts:
    """Write a model as one ONNX file with the metadata of the QGIS plugin Deepness.

    The graph takes pixels divided by 255, scales them as the card says, and gives scores: in batches of any size, of tiles of the
    card's size. The file also holds the card itself, so that ``predict`` takes it in the place of the model's folder. It is judged
    (``onnx.checker``) and compared with the model before it appears under its name.

    Args:
        model: name of a known model, or its folder.
        onnx: file of the result, whose name ends with ``.onnx``.
        force: replace the file if it exists.

    Returns:
        JSON-able facts: ``onnx`` (the path), ``bytes``, ``sha256``, ``model``, ``tile``, ``opset``, and ``same``, the share of the
        pixels of a tile of noise whose class is the model's in fp32.

    Raises:
        CardError: if there is no such model, torch cannot export its network, or the file would not give the model's classes.
        OptionsError: if a package is missing, or names do not end as they must.
        OutputError: if the file is there already, or cannot be written.
    """
    target, place = Path(onnx), locate(model)
    if deepness.is_onnx(place) or not deepness.is_onnx(target):
        wrong, what = (place, "is an ONNX file already") if deepness.is_onnx(place) else (target, f"does not end with {deepness.SUFFIX}")
        raise OptionsError(f"{wrong}: {what}; expected the folder of a model and the name of an ONNX file to be")
    if not target.parent.is_dir() or target.is_dir():
        raise OutputError(f"{target}: is a folder, or lies in one that is not there; choose another --onnx")
    if target.exists() and not force:
        raise OutputError(f"{target}: exists already; use --force to replace it or choose another --onnx")
    card, network = load_network(place)
    facts = card.scaling
    graph = to_onnx(network, low=facts.low, high=facts.high, mean=facts.mean, std=facts.std, tile=card.tile)
    if graph.ByteSize() > deepness.MOST_BYTES:
        raise CardError(
            f"{place}: makes {graph.ByteSize() / 1e9:.1f} GB of ONNX; protocol buffers end at {deepness.MOST_BYTES / 1e9:.1f} GB"
        )
    import onnx as onnx_package  # after torch's exporter, which says how to get it

    onnx_package.helper.set_model_props(graph, deepness.metadata(card))
    onnx_package.checker.check_model(graph, full_check=True)
    part = target.with_name(f".{target.stem}.part{deepness.SUFFIX}")
    with writing(target):
        try:
            with part.open("wb") as file:
                file.write(graph.SerializeToString(deterministic=True))
                file.flush()
                os.fsync(file.fileno())
            same = _same(Segmenter(card, network, device="cpu", precision="fp32"), part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    content = target.read_bytes()
    return {
        "onnx": str(target),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "model": f"{card.name} {card.version}",
        "tile": card.tile,
        "opset": OPSET,
        "same": same,
    }


def _same(model: Segmenter, path: Path) -> float:
    """Share of the pixels of a tile of coarse noise for which model and file name the same class.

    Raises:
        CardError: if it is less than it must be.
    """
    card = model.card
    rng, side = np.random.default_rng(0), -(-card.tile // _LEVELS)
    coarse = rng.uniform(card.scaling.low, card.scaling.high, (len(card.bands), side, side))
    pixels = np.kron(coarse, np.ones((_LEVELS, _LEVELS)))[None, :, : card.tile, : card.tile].astype(card.scaling.dtype)
    valid = np.ones((1, card.tile, card.tile), bool)
    answers = [each.logits(pixels, valid).argmax(1) for each in (model, Segmenter.load(path, device="cpu"))]
    same = float((answers[0] == answers[1]).float().mean())
    if same < SAME:
        raise CardError(
            f"{path}: gives the model's class for {100 * same:.3f} % of a tile only, expected {100 * SAME:.2f} %; please report it"
        )
    return same
