"""What Dask costs beside the plain loop, what a second worker gives, and whether memory stays flat.

    python -m benchmarks.cluster [--quick] [--json]

`dask_overhead` is how much longer the blocks of one scene (2048 x 2048 pixels, U-Net/ResNet-18, four blocks; half that side
with `--quick`) take on one worker with
all threads than in the plain loop with as many, 0.05 is 5 %: median of the ratios of neighbouring runs, by turns. `speedup_two_workers`
is the time of the same blocks on one worker with one thread over that on two with one thread each. Both are the manifest's seconds of
`predict`: from the first block handed out to the last one on disk, connecting to the scheduler and planning on the workers
included; starting scheduler and workers and loading the model are not: a small scene is predicted before. `ms_per_block` is
the wall time of 10 000 tasks (2000 with `--quick`) that do nothing, through `geoseg.cluster.run` on two workers, over their number.
Meanwhile `client_growth_mb` and `scheduler_growth_mb` are the resident memory at the end less that after a fifth of them,
`in_flight` the most tasks handed out at a time, and `graph_kb` what these take as pickled questions of a real prediction.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from typing import Any

from benchmarks.common import child, hardware, make_model, make_scene, parse, tell, workplace

TILE, OVERLAP = 512, 128


def tiny(number: int) -> int:
    """A task that costs nothing."""
    return number


def host(task: dict[str, Any]) -> None:
    """A scheduler and its workers, until our input is closed."""
    import dask
    from distributed import LocalCluster

    threads = {"OMP_NUM_THREADS": str(task["threads"]), "GOMP_SPINCOUNT": "5000"}
    settings = {"distributed.worker.daemon": False}
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=task["workers"], threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", env=threads
        ) as machines,
    ):
        print(json.dumps({"address": machines.scheduler_address}), flush=True)
        sys.stdin.read()


@contextmanager
def machines(workers: int, threads: int) -> Iterator[tuple[str, int]]:
    """Address and process of a scheduler with so many workers."""
    command = [sys.executable, "-m", "benchmarks.cluster", "--child", json.dumps({"kind": "host", "workers": workers, "threads": threads})]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield json.loads(process.stdout.readline())["address"], process.pid


def predict(task: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the blocks of a scene: ways by turns, after a small scene each."""
    from geoseg.cluster import Cluster
    from geoseg.verbs.predict import predict as verb

    def once(scene: str, address: str | None) -> float:
        cluster = Cluster(kind="address", address=address) if address else None
        facts = verb(
            scene, task["model"], out=task["out"], block=task["block"], cluster=cluster, vectors=False, quicklook=False, force=True
        )
        return float(facts["seconds"]["predict"])

    spent = []
    for _ in range(task["times"]):
        for way in task["ways"]:
            once(task["small"], way)
            spent.append(once(task["scene"], way))
    return {"seconds": spent}


def many(task: dict[str, Any]) -> dict[str, Any]:
    """Tiny tasks, and what they do to memory."""
    import psutil

    from benchmarks.cluster import tiny as work  # workers find it under this name
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

    cluster = Cluster(kind="address", address=task["address"])
    list(run(work, range(200), cluster))
    before, largest = [0.0, 0.0], [0.0, 0.0]
    began = time.perf_counter()
    for number, result in run(work, items(), cluster):
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


def measure(*, quick: bool) -> dict[str, Any]:
    """All measurements."""
    facts: dict[str, Any] = {}
    block = 512 if quick else 1024
    cores = os.cpu_count() or 1
    with workplace() as folder:
        with machines(2, 1) as (address, pid):
            task = {"kind": "many", "address": address, "scheduler": pid, "count": 2000 if quick else 10_000}
            facts |= child("benchmarks.cluster", task)
        model = make_model(folder / "unet", "unet", {"encoder_name": "resnet18"}, stride=32, tile=TILE, overlap=OVERLAP)
        scenes = {"small": make_scene(folder / "small.tif", block + 64), "scene": make_scene(folder / "scene.tif", 2 * block)}
        common = {
            "kind": "predict",
            "block": block,
            "model": str(model),
            "out": str(folder / "out"),
            **{key: str(path) for key, path in scenes.items()},
        }
        with machines(1, cores) as (address, _):
            turns = child("benchmarks.cluster", {**common, "ways": [None, address], "times": 1 if quick else 4})["seconds"]
        print(f"# loop and one worker, by turns: {turns}", file=sys.stderr, flush=True)
        ratios = [(second / first if at % 2 == 0 else first / second) for at, (first, second) in enumerate(pairwise(turns))]
        facts |= {"loop_s": round(median(turns[::2]), 3), "one_worker_s": round(median(turns[1::2]), 3)}
        facts["dask_overhead"] = round(median(ratios) - 1, 4)
        with machines(1, 1) as (one, _), machines(2, 1) as (two, _):
            turns = child("benchmarks.cluster", {**common, "ways": [one, two], "times": 1 if quick else 3})["seconds"]
        print(f"# one worker and two, of one thread each, by turns: {turns}", file=sys.stderr, flush=True)
        facts["speedup_two_workers"] = round(sum(turns[::2]) / sum(turns[1::2]), 3)
    return facts | {"blocks": 4, "hardware": hardware()}


if __name__ == "__main__":
    arguments = parse(__doc__.splitlines()[0])
    if not arguments.child:
        tell(measure(quick=arguments.quick), arguments.json)
    elif (task := json.loads(arguments.child)).pop("kind") == "host":
        host(task)
    else:
        print(json.dumps((many if "count" in task else predict)(task)))
