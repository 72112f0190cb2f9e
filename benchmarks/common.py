"""What the benchmarks share: a large real scene, models of random weights, and measured child processes."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

DEMO = Path(__file__).parents[1] / "demo" / "banepa.tif"


def parse(description: str, **more: str) -> argparse.Namespace:
    """The two options of every benchmark, and some with a value, each with what it says."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a small version that takes less than 50 s")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    for name, words in more.items():
        parser.add_argument(f"--{name}", type=Path, help=words)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def tell(facts: dict[str, Any], as_json: bool) -> None:
    """Print the result."""
    print("\n".join(f"{key:24} {value}" for key, value in facts.items()))
    if as_json:
        print(json.dumps(facts))


def hardware() -> str:
    """One line on machine and versions."""
    import torch

    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
        platform.machine(),
    )
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{os.cpu_count()} x {model}{gpu}, torch {torch.__version__}, rasterio {rasterio.__version__}, Python {platform.python_version()}"
    )


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="geoseg-bench-") as folder:
        yield Path(folder)


def make_scene(path: Path, side: int, width: int | None = None) -> Path:
    """An RGB orthophoto of ``side`` rows, and as many columns unless ``width`` says otherwise: the demo scene, mirrored as often as needed.

    Tiled JPEG in a GeoTIFF.
    """
    with rasterio.open(DEMO) as demo:
        pixels, crs, transform = demo.read(), demo.crs, demo.transform
    pair = np.concatenate([pixels, pixels[:, ::-1]], axis=1)
    cell = np.concatenate([pair, pair[:, :, ::-1]], axis=2)
    profile = {"driver": "GTiff", "height": side, "width": width or side, "count": 3, "dtype": "uint8", "crs": crs, "transform": transform}
    with rasterio.open(
        path, "w", **profile, tiled=True, blockxsize=512, blockysize=512, compress="jpeg", photometric="ycbcr", jpeg_quality=85
    ) as file:
        cols = np.arange(width or side) % cell.shape[2]
        for row in range(0, side, 512):
            rows = np.arange(row, min(row + 512, side)) % cell.shape[1]
            file.write(cell[:, rows][:, :, cols], window=rasterio.windows.Window(0, row, side, len(rows)))
    return path


def make_model(
    folder: Path, architecture: str, options: dict[str, Any], *, stride: int, tile: int, overlap: int, state: dict[str, Any] | None = None
) -> Path:
    """A model folder with random (seeded) or given weights, for the demo scene's bands and pixel size."""
    import safetensors.torch
    import torch

    from geoseg import networks
    from geoseg.card import CARD_NAME, WEIGHTS_NAME, ModelCard, Scaling
    from geoseg.legend import ISPRS

    torch.manual_seed(0)
    if state is None:
        state = networks.build(architecture, bands=3, classes=6, **options).state_dict()
    folder.mkdir(parents=True)
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS_NAME)
    card = ModelCard(
        name="benchmark",
        version="0",
        description="Random weights, to measure speed.",
        architecture=architecture,
        options=options,
        parameters=sum(tensor.numel() for tensor in state.values()),
        bands=("red", "green", "blue"),
        scaling=Scaling(dtype="uint8", low=0, high=255, percentiles=(2, 98), mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2)),
        resolution_m=0.13,
        tile=tile,
        overlap=overlap,
        stride=stride,
        legend=ISPRS,
        license="CC0-1.0",
        training_data=(),
        scores={},
        sha256=hashlib.sha256((folder / WEIGHTS_NAME).read_bytes()).hexdigest(),
    )
    (folder / CARD_NAME).write_text(card.to_json())
    return folder


def child(module: str, task: dict[str, Any]) -> dict[str, Any]:
    """Run one measurement in a process of its own; returns its JSON, with its peak memory as ``peak_gb``."""
    command = [sys.executable, "-m", module, "--child", json.dumps(task)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"GOMP_SPINCOUNT": "5000"}
    )  # as the launcher
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def peak_gb() -> float:
    """Peak resident memory of this process, 10^9 bytes (not ru_maxrss, which a child inherits from its parent)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


def seconds(call: Callable[[], object]) -> float:
    """Wall time of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
