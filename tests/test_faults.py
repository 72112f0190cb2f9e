"""Whatever dies while a batch runs, each scene is done once, and as the loop does it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from distributed import Client
from distributed.scheduler import KilledWorker

from geoseg.cluster import Cluster, run
from geoseg.engine import Options
from geoseg.errors import OptionsError
from geoseg.verbs.batch import Settings, batch, status
from tests.conftest import make_scene
from tests.oracles import model_folder
from tests.test_batch import digests, states
from tests.test_cli import METRES
from tests.test_cluster import die

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[1]
POISON = "poison"
PRELOAD = '''
"""What a worker of these tests does besides its work: it keeps a journal, and dies of the scenes that are poison."""
import os, resource, signal, sys, time
from pathlib import Path
import geoseg.verbs.predict
from geoseg.verbs import batch

verb = sys.modules["geoseg.verbs.predict"]

def noted(scene, *args, real=batch.predict, **options):
    name = Path(scene).stem
    if name.startswith("poison"):
        os.kill(os.getpid(), signal.SIGKILL)
    write("begun", name)
    limit = int(os.environ.get("FILE_LIMIT", resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        facts = real(scene, *args, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    write("kept" if facts["already_done"] else "made", name)
    return facts

def write(word, name):
    with open(os.environ["JOURNAL"], "a") as file:
        file.write(f"{word} {name} {os.environ['WORKER']}\\n")

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
if not hasattr(batch.predict, "noted"):  # Dask may load this twice
    noted.noted = True
    batch.predict = noted
    whole = verb._predict_block

    def tarry(work, *args):
        if Path(work.scene.path).stem.startswith("slow"):
            time.sleep(15)
        whole(work, *args)

    verb._predict_block = tarry
'''


def until(wanted: Callable[[], bool], seconds: float = 60) -> bool:
    """Wait for something; whether it came."""
    deadline = time.monotonic() + seconds
    while not (come := wanted()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return come


class AwkwardError(Exception):
    """It can be pickled, but not read again."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def awkward(number: int) -> object:
    if number == 1:
        raise AwkwardError("neither", "nor")
    return threading.Lock() if number == 2 else number


class Machines:
    """A scheduler and workers in processes of their own, which may be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.journal, self.processes = folder, folder / "journal.txt", dict[str, subprocess.Popen[bytes]]()
        (folder / "preload.py").write_text(PRELOAD)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        self.config = folder / "cluster.yaml"
        self.config.write_text(f"kind: address\naddress: {self.address}\ngpu: true\n")

    def _start(self, name: str, *line: object, **environment: str) -> None:
        env = (
            os.environ | {"JOURNAL": str(self.journal), "WORKER": name, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "2"} | environment
        )
        with (self.folder / "log.txt").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", *map(str, line)], cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True
            )

    def scheduler(self) -> None:
        """Start the scheduler."""
        host, _, port = self.address.removeprefix("tcp://").partition(":")
        self._start("scheduler", "distributed.cli.dask_scheduler", "--host", host, "--port", port, "--dashboard-address", "127.0.0.1:0")

    def worker(self, name: str, *, gpu: bool = True, **environment: str) -> None:
        """Start a worker, with a nanny who starts it again."""
        options = ["--nthreads", "1", "--host", "127.0.0.1", "--no-dashboard", "--name", name, "--local-directory", self.folder]
        options += ["--preload", self.folder / "preload.py", *(["--resources", "GPU=1"] if gpu else [])]
        self._start(name, "distributed.cli.dask_worker", self.address, *options, **environment)

    def batch(self, scenes: list[Path], model: Path, out: Path, *more: str) -> None:
        """Start the batch as a user does."""
        line = ["geoseg.cli", "batch", *scenes, "--out", out, "-m", model, "--precision", "fp32", "--no-quicklook", "--quiet"]
        self._start("client", *line, "--cluster", self.config, *more)

    def wound(self, rng: random.Random) -> int:
        """Kill the process of one worker, if there is one, but not its nanny."""
        nannies = [process.pid for name, process in self.processes.items() if name.startswith("worker")]
        found = []
        for nanny in nannies:
            with contextlib.suppress(psutil.Error):
                found += [child for child in psutil.Process(nanny).children() if "spawn_main" in " ".join(child.cmdline())]
        if not found:
            return 0
        with contextlib.suppress(psutil.Error):
            rng.choice(found).kill()
        return 1

    def kill(self, name: str) -> None:
        """Kill a process and its children."""
        process = self.processes.pop(name)
        family = [process.pid]
        with contextlib.suppress(psutil.Error):
            family += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def end(self, name: str, seconds: float) -> int | None:
        """Exit status of a process that ends by itself; None if it does not."""
        try:
            code = self.processes[name].wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        del self.processes[name]
        return code

    def told(self) -> list[tuple[str, str, str]]:
        """Journal of the workers: what happened to which scene where."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [(word, scene, worker) for word, scene, worker in map(str.split, lines)]


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    folder = tmp_path / "machines"
    folder.mkdir()
    made = Machines(folder)
    try:
        yield made
    finally:
        for name in list(made.processes):
            made.kill(name)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def settings(model: Path) -> Settings:
    return Settings(model=str(model), options=Options(precision="fp32"), quicklook=False)


def draw(folder: Path, names: list[str], seed: int = 3) -> list[Path]:
    """Small scenes, each different."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    paths = []
    for name in names:
        pixels = (1 + 250 * np.kron(rng.random((3, 4, 5)), np.ones((20, 20)))).astype(np.uint8)
        paths.append(make_scene(folder / f"{name}.tif", pixels, nodata=0, transform=METRES))
    return paths


def manifests(out: Path) -> dict[str, int]:
    """When each scene was finished."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*.manifest.json")}


def done(out: Path) -> int:
    """Scenes that are done; none before there is a table."""
    try:
        return sum(row["state"] == "done" for row in status(out))
    except OptionsError:
        return 0


def ordeal(
    machines: Machines, tmp_path: Path, settings: Settings, *, count: int, kills: int, thorough: bool, rng: random.Random
) -> dict[str, int]:
    """A batch in which client, scheduler and workers die, and what of it was lost, doubled or wrong."""
    sound = [f"scene{number:02}" for number in range(count)]
    names = [*sound, f"{POISON}0"]
    rng.shuffle(names)
    scenes = draw(tmp_path / "scenes", names)
    reference, out, model = tmp_path / "reference", tmp_path / "out", Path(settings.model)
    batch([path for path in scenes if path.stem != f"{POISON}0"], out=reference, settings=settings)
    killed, over, seen = 0, threading.Event(), dict[str, int]()
    doubled = set()

    def watch() -> None:
        """Kill workers at random moments, and note when each manifest was written."""
        nonlocal killed
        following = time.monotonic() + rng.uniform(3, 8)
        while not over.wait(0.05):
            with contextlib.suppress(FileNotFoundError):
                for name, moment in manifests(out).items():
                    if seen.setdefault(name, moment) != moment:
                        doubled.add(name)
            if killed < kills and done(out) and time.monotonic() > following:
                killed += machines.wound(rng)
                following = time.monotonic() + rng.uniform(3, 9)

    machines.scheduler()
    machines.worker("worker_a")
    machines.worker("idle", gpu=False)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        machines.batch(scenes, model, out)
        machines.worker("worker_b")
        first = rng.randrange(count // 5, count // 3)
        assert until(lambda: done(out) >= first, 150), "the batch does not get on"
        if thorough:
            machines.kill("client")
            machines.batch(scenes, model, out)
            before = done(out)
            assert until(lambda: done(out) > max(before, count // 2), 150), "the batch does not get on after its client was killed"
        machines.kill("scheduler")
        if thorough:
            code = machines.end("client", 60)
            assert code not in (None, 0), f"a client without scheduler ended with {code}"
        else:
            machines.kill("client")
        for name in ("worker_a", "worker_b"):
            machines.kill(name)
        machines.scheduler()
        machines.worker("worker_c")
        machines.batch(scenes, model, out)
        machines.worker("worker_late")
        code = machines.end("client", 240)
    finally:
        over.set()
        watcher.join()
    made = Counter(scene for word, scene, _ in machines.told() if word == "made")
    found, expected = digests(out), digests(reference)
    ended = states(out)
    facts = {
        "code": -1 if code is None else code,
        "lost": sum(ended[name] != "done" for name in sound),
        "doubled": len(doubled | {name for name, times in made.items() if times > 1}),
        "wrong": sum(found.get(name) != digest for name, digest in expected.items()) + len(found.keys() - expected.keys()),
        "poison": int(ended[f"{POISON}0"] == "quarantined"),
        "idle": sum(worker == "idle" for _, _, worker in machines.told()),
        "kills": killed,
        "begun": sum(word == "begun" for word, _, _ in machines.told()),
    }
    reasons = {Path(row["scene"]).stem: row["reason"] for row in status(out) if row["reason"]}
    (tmp_path / "facts.json").write_text(json.dumps(facts | {"reasons": reasons}, indent=1))
    return facts


SOUND = {"code": 3, "lost": 0, "doubled": 0, "wrong": 0, "poison": 1, "idle": 0}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_is_lost_doubled_or_wrong_whatever_dies(machines: Machines, tmp_path: Path, settings: Settings) -> None:
    facts = ordeal(machines, tmp_path, settings, count=10, kills=1, thorough=False, rng=random.Random(1))
    assert {key: facts[key] for key in SOUND} == SOUND


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1])
def test_nothing_is_lost_doubled_or_wrong_in_many_scenes(machines: Machines, tmp_path: Path, settings: Settings, seed: int) -> None:
    facts = ordeal(machines, tmp_path, settings, count=60, kills=8, thorough=True, rng=random.Random(seed))
    assert {key: facts[key] for key in SOUND} == SOUND
    assert facts["kills"] >= 2


@pytest.mark.timeout(60)
def test_an_answer_that_cannot_travel_is_a_failure_of_that_task_alone() -> None:
    answers = dict(run(awkward, range(4), Cluster(kind="local", workers=1)))
    assert (answers[0], answers[3]) == (0, 3)
    assert isinstance(answers[1], Exception)
    assert "neither nor" in str(answers[1])
    assert isinstance(answers[2], Exception)


def test_who_waits_behind_a_task_that_kills_is_not_blamed() -> None:
    """Tasks with resources are given to a worker at once, so that some wait there when it dies, each time."""
    answers = dict(run(die, [3, 0, 1, 2], Cluster(kind="local", workers=1, gpu=True)))
    assert isinstance(answers.pop(3), KilledWorker)
    assert answers == {0: 0, 1: 1, 2: 2}


def test_a_scene_at_which_a_worker_still_is_when_its_client_was_killed(machines: Machines, tmp_path: Path, settings: Settings) -> None:
    """The worker cannot be stopped in the midst; who runs the batch again waits for it, and does not do it twice."""
    scenes, out = draw(tmp_path / "scenes", ["slow", "quick"]), tmp_path / "out"
    machines.scheduler()
    machines.worker("worker_a")
    machines.worker("worker_b")
    machines.batch(scenes, Path(settings.model), out)
    assert until(lambda: ("begun", "slow") in {line[:2] for line in machines.told()} and done(out) == 1)
    machines.kill("client")
    batch(scenes, out=out, settings=settings, cluster=Cluster.of(str(machines.config)))
    assert states(out) == {"slow": "done", "quick": "done"}, [row["reason"] for row in status(out)]
    assert Counter(scene for word, scene, _ in machines.told() if word == "made") == {"slow": 1, "quick": 1}


def test_a_full_disk_of_one_worker(machines: Machines, tmp_path: Path, settings: Settings) -> None:
    """What it cannot write is written by another one."""
    scenes, out, reference = draw(tmp_path / "scenes", [f"scene{number}" for number in range(6)]), tmp_path / "out", tmp_path / "reference"
    batch(scenes, out=reference, settings=settings)
    machines.scheduler()
    machines.worker("worker_full", FILE_LIMIT="1000")
    machines.worker("worker_sound")
    with Client(machines.address, timeout="60s") as client:
        client.wait_for_workers(2, 60)
    machines.batch(scenes, Path(settings.model), out)
    assert machines.end("client", 120) == 0
    assert set(states(out).values()) == {"done"}
    assert digests(out) == digests(reference)
    assert any(worker == "worker_full" for word, _, worker in machines.told() if word == "begun")


def test_a_full_disk_of_the_only_worker(machines: Machines, tmp_path: Path, settings: Settings) -> None:
    """The scenes are named with what was wrong, nothing is left half written; they are done when they are asked for again."""
    scenes, out, reference = draw(tmp_path / "scenes", ["scene0", "scene1"]), tmp_path / "out", tmp_path / "reference"
    batch(scenes, out=reference, settings=settings)
    machines.scheduler()
    machines.worker("worker_full", FILE_LIMIT="1000")
    machines.batch(scenes, Path(settings.model), out)
    assert machines.end("client", 120) == 3
    assert states(out) == {"scene0": "failed", "scene1": "failed"}
    assert all(row["reason"] for row in status(out))
    assert digests(out) == {}
    batch(scenes, out=out, settings=settings, retry=True)
    assert set(states(out).values()) == {"done"}
    assert digests(out) == digests(reference)
