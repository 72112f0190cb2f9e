"""How much of `geoseg predict`'s raster stage is not the network's own forward pass, and how much memory it takes.

    python -m benchmarks.predict [--quick] [--json]

One RGB scene of 6000 x 6000 pixels, tile 512, overlap 128. For U-Net/ResNet-18 and FCN-ResNet50: the forward pass of as
many tiles as the scene has (a quarter of them for the FCN, times four), in the best layout and precision, before and after
(the median), against the stage that reads, predicts, blends and writes the COG. `ratio_...` is against the network as it was
built; geoseg folds its batch norms into its convolutions, and `ratio_..._folded` is against the forward pass of that. Beside
it the loop a user would write in an hour. Then the memory of a 12000 x 12000 and a 30000 x 30000 scene with a tiny network.
Each measurement is a process of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.common import child, hardware, make_model, make_scene, parse, peak_gb, seconds, tell, workplace

TILE, OVERLAP = 512, 128
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "unet": ("unet", {"encoder_name": "resnet18"}, 32),
    "fcn": ("fcn_resnet50", {}, 8),
    "tiny": ("unet", {"encoder_name": "resnet18", "encoder_depth": 3, "decoder_channels": [16, 8, 8]}, 8),
}


def forward(task: dict[str, Any]) -> dict[str, Any]:
    """Pure forward pass of ``tiles`` tiles: of the network as it was built, and as geoseg folds it."""
    import torch

    from geoseg import networks
    from geoseg.segmenter import Segmenter

    architecture, options, _ = NETWORKS[task["network"]]
    segmenter = Segmenter.load(task["model"])  # also sets malloc
    network = networks.build(architecture, bands=3, classes=6, **options).eval().to(memory_format=torch.channels_last)
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.standard_normal((1, 3, TILE, TILE), np.float32)).contiguous(memory_format=torch.channels_last)

    def run(network: torch.nn.Module, count: int) -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=segmenter.precision == "bf16"):
            for _ in range(count):
                network(pixels)

    spent = []
    for chosen in (network, segmenter._network):
        run(chosen, 3)
        spent.append(seconds(lambda: run(chosen, task["tiles"])))  # noqa: B023 called at once
    return {"seconds": spent[0], "folded": spent[1], "tiles": task["tiles"], "precision": segmenter.precision}


def predict(task: dict[str, Any]) -> dict[str, Any]:
    """The raster stage of predict."""
    from geoseg.verbs.predict import predict as verb

    manifest = verb(task["scene"], task["model"], out=task["out"], vectors=False, quicklook=False, force=True)
    spent = manifest["seconds"]
    return {"seconds": spent["predict"] + spent["raster"], "predict": spent["predict"], "whole": sum(spent.values()), "peak_gb": peak_gb()}


def plain(task: dict[str, Any]) -> dict[str, Any]:
    """What a user writes in an hour: fp32, NCHW, batches of 4, crop of the centre, an accumulator of the scene's size."""
    import rasterio
    import torch
    from rasterio.windows import Window

    from geoseg import networks

    architecture, options, _ = NETWORKS["unet"]
    network = networks.build(architecture, bands=3, classes=6, **options).eval()

    def run() -> None:
        with rasterio.open(task["scene"]) as scene:
            height, width, profile = scene.height, scene.width, scene.profile
            total = np.zeros((6, height, width), np.float32)
            weight = np.zeros((height, width), np.float32)
            stride = TILE - OVERLAP
            rows = [*range(0, height - TILE, stride), height - TILE]
            cols = [*range(0, width - TILE, stride), width - TILE]
            corners = [(row, col) for row in rows for col in cols]
            for start in range(0, len(corners), 4):
                part = corners[start : start + 4]
                batch = np.stack([scene.read(window=Window(col, row, TILE, TILE)) for row, col in part])
                with torch.no_grad():
                    logits = network((torch.from_numpy(batch).float() / 255 - 0.4) / 0.2).numpy()
                for (row, col), answer in zip(part, logits, strict=True):
                    total[:, row : row + TILE, col : col + TILE] += answer
                    weight[row : row + TILE, col : col + TILE] += 1
            classes = torch.from_numpy(total / weight).argmax(0).numpy().astype(np.uint8)
            profile.update(count=1, dtype="uint8", compress="deflate", photometric="minisblack")
        with rasterio.open(task["out"], "w", **profile) as target:
            target.write(classes, 1)

    return {"seconds": seconds(run), "peak_gb": peak_gb()}


def measure(*, quick: bool) -> dict[str, Any]:
    """All measurements."""
    from geoseg.card import ModelCard
    from geoseg.engine import Options, make_plan
    from geoseg.verbs.segment import ArraySource
    from geoseg.window import Window

    def call(kind: str, **task: Any) -> dict[str, Any]:
        facts = child(
            "benchmarks.predict", {"kind": kind, **{key: str(value) if isinstance(value, Path) else value for key, value in task.items()}}
        )
        print(f"# {kind} {task.get('label', '')}: {facts}", file=sys.stderr, flush=True)
        return facts

    facts: dict[str, Any] = {}
    side = 896 if quick else 6000
    with workplace() as folder:
        scene = make_scene(folder / "scene.tif", side)
        models = {
            name: make_model(folder / name, architecture, options, stride=stride, tile=TILE, overlap=OVERLAP)
            for name, (architecture, options, stride) in NETWORKS.items()
        }
        grid = ArraySource(np.zeros((0, 0, 0)), np.zeros((0, 0), bool), Window(0, 0, 1, 1), (side, side))
        for name in ("unet", "fcn"):
            plan = make_plan(grid, ModelCard.read(models[name])[0], Options(), pixel_m=None, stretch=None)
            tiles = sum(len(plan.tiles(core)) for core in plan.cores())
            task = {"label": name, "network": name, "model": models[name], "tiles": tiles if name == "unet" else tiles // 4}
            forwards, wholes = [call("forward", **task)], list[dict[str, Any]]()
            for _ in range(2 if name == "unet" and not quick else 1):
                wholes.append(call("predict", label=name, scene=scene, model=models[name], out=folder / f"out_{name}"))
                forwards += [] if quick else [call("forward", **task)]
            pure, folded = (tiles * median(f[key] / f["tiles"] for f in forwards) for key in ("seconds", "folded"))
            whole = {key: median(w[key] for w in wholes) for key in ("seconds", "peak_gb")}
            facts |= {f"tiles_{name}": tiles, f"raster_stage_{name}_s": round(whole["seconds"], 2)}
            facts |= {f"forward_{name}_s": round(pure, 2), f"forward_{name}_folded_s": round(folded, 2)}
            facts |= {f"ratio_{name}": round(whole["seconds"] / pure, 4), f"ratio_{name}_folded": round(whole["seconds"] / folded, 4)}
            facts[f"peak_{name}_gb"] = round(whole["peak_gb"], 3)
        loop = call("plain", scene=scene, out=folder / "plain.tif")
        facts |= {"plain_loop_s": round(loop["seconds"], 2), "plain_loop_peak_gb": round(loop["peak_gb"], 3)}
        facts["speedup_plain_loop"] = round(loop["seconds"] / facts["raster_stage_unet_s"], 3)
        facts["peak_gb"] = facts["peak_unet_gb"]
        base = call("predict", label="tiny", scene=scene, model=models["tiny"], out=folder / "out_tiny")["peak_gb"]
        facts["peak_tiny_gb"] = round(base, 3)
        facts["memory_growth"] = 0.0
        for larger in (1792,) if quick else (12000, 30000):
            big = make_scene(folder / f"scene_{larger}.tif", larger)
            peak = call("predict", label=f"tiny {larger}", scene=big, model=models["tiny"], out=folder / f"out_{larger}")["peak_gb"]
            facts[f"peak_tiny_{larger}_gb"] = round(peak, 3)
            facts["memory_growth"] = max(facts["memory_growth"], round(peak / base, 3))
    facts |= {"precision": forwards[0]["precision"], "side": side, "hardware": hardware()}
    return facts


if __name__ == "__main__":
    arguments = parse(__doc__.splitlines()[0])
    if arguments.child:
        task = json.loads(arguments.child)
        print(json.dumps({"forward": forward, "predict": predict, "plain": plain}[task.pop("kind")](task)))
    else:
        tell(measure(quick=arguments.quick), arguments.json)
