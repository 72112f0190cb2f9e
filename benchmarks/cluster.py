"""What Dask costs beside the plain loop, what a second worker gives, and whether memory stays flat.

    python -m benchmarks.cluster [--quick] [--json]

`dask_overhead` is how much longer the blocks of one scene (4096 x 4096 pixels in 16 blocks, U-Net/ResNet-18; a quarter of that side in
four blocks with `--quick`) take on one worker with all threads than in the plain loop with as many, 0.05 is 5 %: median of the
ratios of neighbouring runs, by turns. `speedup_two_workers`
is the time of the same blocks on one worker with one thread over that on two with one thread each. Both are the manifest's seconds of
`predict`: from the first block handed out to the last one on disk, connecting to the scheduler and planning on the workers
included; starting scheduler and workers and loading the model are not: a small scene is predicted before. `ms_per_block` is
the wall time of 10 000 tasks (1000 with `--quick`) that do nothing, through `geoseg.cluster.run` on two workers, over their number.
Meanwhile `client_growth_mb` and `scheduler_growth_mb` are the resident memory at the end less that after a fifth of them,
`in_flight` the most tasks handed out at a time, and `graph_kb` what these take as pickled questions of a real prediction.
`worker_memory_growth` (not with `--quick`) is the peak memory of a worker after a scene of 30 000 x 30 000 pixels over that after
one block of 6000 x 6000 each, on two workers, with a tiny network: the larger of the two.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import child, hardware, make_model, make_scene, parse, tell, workplace

TILE, OVERLAP = 512, 128


def tiny(number: int) -> int:
    """A task that costs nothing."""
    return number


def host(workers: int) -> None:
    """A scheduler and its workers, until our input is closed."""
    import dask
    from distributed import LocalCluster

    from geoseg.cluster import SETTINGS

    with (
        dask.config.set(SETTINGS),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            env={"GOMP_SPINCOUNT": "5000"},
            preload=["geoseg.verbs.predict"],
        ) as machines,
    ):
        print(machines.scheduler_address, flush=True)
        sys.stdin.read()


@contextmanager
def machines(*workers: int) -> Iterator[list[tuple[str, int]]]:
    """Address and process of schedulers with so many workers each."""
    with ExitStack() as stack:
        commands = [[sys.executable, "-m", "benchmarks.cluster", "--child", json.dumps({"host": count})] for count in workers]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        hosts = [stack.enter_context(subprocess.Popen(command, **pipes)) for command in commands]  # type: ignore[call-overload]
        yield [(one.stdout.readline().strip(), one.pid) for one in hosts]


def predict(task: dict[str, Any], address: str | None) -> float:
    """Seconds of the blocks of the scene, after a small one."""
    from geoseg.cluster import Cluster
    from geoseg.verbs.predict import predict as verb

    folder = Path(task["folder"])
    cluster = Cluster(kind="address", address=address, threads=task["threads"][address]) if address else None
    options: dict[str, Any] = {"out": folder / "out", "block": task["block"], "cluster": cluster, "force": True}
    spent = 0.0
    for scene in ("small.tif", "scene.tif"):
        spent = verb(folder / scene, folder / "unet", vectors=False, quicklook=False, **options)["seconds"]["predict"]
    return spent


def many(task: dict[str, Any]) -> dict[str, Any]:
    """Tiny tasks, and what they do to memory."""
    import psutil

    from benchmarks.cluster import tiny as idle  # workers find it under this name
    from geoseg.cluster import Cluster, run
    from geoseg.engine import Options
    from geoseg.verbs.predict import _Order, _predict_for
    from geoseg.window import Window

    given = answered = in_flight = 0

    def items() -> Iterator[int]:
        nonlocal given, in_flight
        for number in range(task["count"]):
            given += 1
            in_flight = max(in_flight, given - answered)
            yield number

    def resident() -> list[float]:
        return [psutil.Process(pid).memory_info().rss / 1e6 for pid in (os.getpid(), task["scheduler"])]

    cluster = Cluster(kind="address", address=task["two"])
    list(run(idle, range(200), cluster))
    before, largest = [0.0, 0.0], [0.0, 0.0]
    began = time.perf_counter()
    for number, result in run(idle, items(), cluster):
        assert number == result
        answered += 1
        if answered == task["count"] // 5:
            before = resident()
        elif answered % 500 == 0:
            largest = [max(pair) for pair in zip(largest, resident(), strict=True)]
    spent = time.perf_counter() - began
    assert answered == task["count"]
    growth = [round(last - first, 1) for first, last in zip(before, largest, strict=True)]
    order = _Order("/data/scenes/scene.tif", "/data/models/model", None, None, None, Options(), "auto", False, None, None)
    question = len(pickle.dumps((_predict_for, (order, Window(6144, 6144, 6144, 6144), "/data/out/.geoseg-scene/6144_6144.block"), 2)))
    return {
        "ms_per_block": round(spent / task["count"] * 1e3, 3),
        "client_growth_mb": growth[0],
        "scheduler_growth_mb": growth[1],
        "in_flight": in_flight,
        "graph_kb": round(in_flight * question / 1e3, 1),
    }


def memory(task: dict[str, Any], rows: int, columns: int) -> Mapping[str, float]:
    """Peak memory of each of two workers after a scene of that size, 10^9 bytes."""
    from distributed import Client

    from benchmarks.common import peak_gb
    from geoseg.cluster import Cluster
    from geoseg.verbs.predict import predict as verb

    folder, cluster = Path(task["folder"]), Cluster(kind="address", address=task["two"], threads=1)
    scene = make_scene(folder / f"scene_{columns}.tif", rows, columns)
    verb(scene, folder / "tiny", out=folder / "out", cluster=cluster, vectors=False, quicklook=False)
    scene.unlink()
    with Client(task["two"]) as client:
        peaks: Mapping[str, float] = client.run(peak_gb)
        return peaks


def work(task: dict[str, Any]) -> dict[str, Any]:
    """All that is asked of the machines."""
    folder, block = Path(task["folder"]), task["block"]
    facts = many(task)
    make_model(folder / "unet", "unet", {"encoder_name": "resnet18"}, stride=32, tile=TILE, overlap=OVERLAP)
    make_scene(folder / "small.tif", block + 64)
    make_scene(folder / "scene.tif", task["side"])
    if task["large"]:
        options = {"encoder_name": "resnet18", "encoder_depth": 3, "decoder_channels": [16, 8, 8]}
        make_model(folder / "tiny", "unet", options, stride=8, tile=TILE, overlap=OVERLAP)
        peaks = [memory(task, *size) for size in ((6000, 12_000), (30_000, 30_000))]
        facts["worker_peak_gb"] = [[round(scene[worker], 3) for scene in peaks] for worker in peaks[0]]
        facts["worker_memory_growth"] = round(max(peaks[1][worker] / peaks[0][worker] for worker in peaks[0]), 3)
    return facts | {"seconds": [[predict(task, way) for _ in range(task["times"]) for way in pair] for pair in task["pairs"]]}


def measure(*, quick: bool) -> dict[str, Any]:
    """All measurements."""
    side, block = (1024, 512) if quick else (4096, 1024)
    with workplace() as folder, machines(1, 1, 2) as ((whole, _), (one, _), (two, scheduler)):
        task = {
            "folder": str(folder),
            "side": side,
            "block": block,
            "times": 1 if quick else 3,
            "count": 1000 if quick else 10_000,
            "pairs": [[None, whole], [one, two]],
            "threads": {one: 1, two: 1, whole: os.cpu_count()},
            "two": two,
            "large": not quick,
            "scheduler": scheduler,
        }
        facts = child("benchmarks.cluster", task)
    plain, workers = facts.pop("seconds")
    print(f"# loop and one worker, by turns: {plain}", file=sys.stderr)
    print(f"# one worker and two, of one thread each, by turns: {workers}", file=sys.stderr)
    ratios = [(second / first if at % 2 == 0 else first / second) for at, (first, second) in enumerate(pairwise(plain))]
    return facts | {
        "loop_s": round(median(plain[::2]), 3),
        "one_worker_s": round(median(plain[1::2]), 3),
        "dask_overhead": round(median(ratios) - 1, 4),
        "speedup_two_workers": round(sum(workers[::2]) / sum(workers[1::2]), 3),
        "blocks": (side // block) ** 2,
        "hardware": hardware(),
    }


if __name__ == "__main__":
    arguments = parse(__doc__.splitlines()[0])
    if not arguments.child:
        tell(measure(quick=arguments.quick), arguments.json)
    elif "host" in (task := json.loads(arguments.child)):
        host(task["host"])
    else:
        print(json.dumps(work(task)))
