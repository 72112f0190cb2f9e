"""What a scene is, whether a model fits it, and what predicting it would take."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch

from geoseg.detector import Detector
from geoseg.engine import BLOCK, Options, Plan, make_plan
from geoseg.errors import SceneError, TilingError
from geoseg.manifest import Facts
from geoseg.models import locate
from geoseg.models import read as read_model
from geoseg.polygons import Shaping
from geoseg.scene import Policy, Scene, Stretch
from geoseg.segmenter import Segmenter
from geoseg.verbs.instances import check
from geoseg.verbs.predict import disk_bytes, prepare
from geoseg.window import Window

_PROBES = 3


def inspect(
    scene: str | Path, model: str | Path = "default", *, indexes: tuple[int, ...] | None = None, policy: Policy | None = None
) -> Facts:
    """Facts of a scene, and whether the model takes it.

    Args:
        scene: GeoTIFF.
        model: name of a known model, its folder, or an ONNX file (``geoseg.deepness``).
        indexes: 1-based band numbers in the model's order; None to find them by name.
        policy: which files may be opened.

    Returns:
        JSON-able facts; ``fits`` says yes, or no and why.

    Raises:
        SceneError: if the file cannot be used at all.
        CardError: if the model cannot be read.
    """
    card, _ = read_model(locate(model))
    facts: Facts = Scene.describe(scene, bands=None, indexes=None, policy=policy or Policy()).facts()
    try:
        fitting = Scene.describe(scene, bands=card.bands, indexes=indexes, policy=policy or Policy())
        plan = make_plan(fitting, card, Options(), pixel_m=fitting.pixel_m, stretch=None)
    except (SceneError, TilingError) as error:
        return {**facts, "model": card.name, "fits": f"no: {error}"}
    seen = (
        "as it is"
        if plan.seen is plan.scene
        else f"resampled to {plan.seen.shape[1]} x {plan.seen.shape[0]} pixels of {card.resolution_m} m"
    )
    return {**facts, "model": card.name, "fits": f"yes: bands {fitting.bands} as {', '.join(card.bands)}, read {seen}"}


def _answer(model: Segmenter, pixels: np.ndarray, valid: np.ndarray, stretch: Stretch | None) -> None:
    """Ask the model, and wait for the answer."""
    if isinstance(model, Detector):
        model.instances(pixels, valid, stretch)
    else:
        model.logits(pixels, valid, stretch).cpu()


def _sharpen(plan: Plan, model: Segmenter, window: Window) -> None:
    """Ask the CRF about a window of the scene, with logits of noise, and wait for the answer."""
    assert plan.crf is not None
    with plan.seen.reader() as reader:
        pixels, valid = reader.read(window)
    logits = torch.randn((len(model.card.legend), *window.shape), generator=torch.Generator().manual_seed(0)).to(model.device)
    colours = 255 * model.levels(pixels, plan.stretch)
    plan.crf.sharpen(logits, colours, torch.from_numpy(valid).to(model.device)).cpu()


def estimate(
    scene: str | Path,
    model: str | Path = "default",
    *,
    bands: tuple[int, ...] | None = None,
    bbox: tuple[float, float, float, float] | None = None,
    aoi: str | Path | None = None,
    options: Options | None = None,
    device: str = "auto",
    policy: Policy | None = None,
) -> Facts:
    """What ``predict`` with the same arguments would do and take; the time from a probe of a few tiles of the scene's size.

    With a CRF also of a window in the middle of the scene, of which the memory is measured, too.

    Returns:
        Tiles, blocks, ``halo`` (how many pixels around a block are asked for it), ``crf_windows``, memory in GB, disk in GB, free disk
        in GB, seconds.

    Raises:
        GeosegError: where ``predict`` would.
    """
    work = prepare(scene, model, bands=bands, bbox=bbox, aoi=aoi, options=options or Options(), device=device, policy=policy)
    described, plan, segmenter, card = work.scene, work.plan, work.segmenter, work.segmenter.card
    if isinstance(segmenter, Detector):
        check(card, plan, options or Options(), Shaping(), confidence=False, compiled=False)
    cores = plan.cores(BLOCK)
    windows = [tile.seen for core in cores for tile in plan.crf_tiles(core)]
    tiles = sum(len(plan.tiles(core)) for core in cores)
    shape = plan.tiles(cores[0])[0].seen.shape
    segmenter.prepare(shape)
    blank = np.zeros((segmenter.batch, *shape, len(card.bands)), described.dtype).transpose(0, 3, 1, 2)
    times = []
    for _ in range(_PROBES + 1):
        began = time.perf_counter()
        _answer(segmenter, blank, np.ones((segmenter.batch, *shape), bool), plan.stretch)
        times.append((time.perf_counter() - began) / segmenter.batch)
    seconds = tiles * min(times[1:]) * 1.1
    if windows:
        began = time.perf_counter()
        _sharpen(plan, segmenter, windows[len(windows) // 2])
        seconds += len(windows) * (time.perf_counter() - began)
    rows = plan.tiling.tile + (plan.crf.tile if plan.crf else 0)
    canvas = 4 * (len(card.legend) + 1) * rows * max(plan.asked(core).width for core in cores)
    area = plan.region.window.area
    where = Path(scene).parent
    return {
        "scene": str(scene),
        "size": f"{described.shape[1]} x {described.shape[0]} pixels",
        "seen": f"{plan.seen.shape[1]} x {plan.seen.shape[0]} pixels of about {card.resolution_m} m",
        "model": f"{card.name} {card.version}",
        "tile": plan.tiling.tile,
        "overlap": plan.tiling.overlap,
        "tiles": tiles,
        "blocks": len(cores),
        "halo": max(_halo(plan, core) for core in cores),
        "crf_windows": len(windows),
        "batch": segmenter.batch,
        "device": str(segmenter.device),
        "precision": segmenter.precision,
        "memory_gb": round((_resident() + 2 * canvas + 0.3e9) / 1e9, 2),
        "disk_gb": round(disk_bytes(plan) / 1e9, 3),
        "disk_free_gb": round(shutil.disk_usage(where).free / 1e9, 3),
        "seconds": round(seconds + area / 15e6 + 2, 1),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
    }


def _halo(plan: Plan, core: Window) -> int:
    """How far the tiles and windows of a block look beyond it, pixels that the network sees."""
    field, seen = plan.field(core), [tile.seen for tile in plan.tiles(core)]
    return max(
        *(max(field.row - window.row, field.col - window.col) for window in seen),
        *(max(window.end_row - field.end_row, window.end_col - field.end_col) for window in seen),
    )


def _resident() -> float:
    """Peak resident memory of this process so far, bytes."""
    unit = 1024 if sys.platform == "linux" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
