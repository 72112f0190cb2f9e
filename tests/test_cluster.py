"""Work on real processes: the same answers as a loop, and nothing lost when a worker dies."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace

import dask
import distributed
import psutil
import pytest
from distributed import LocalCluster
from distributed.scheduler import KilledWorker, NoValidWorkerError

from geoseg import cluster
from geoseg.cluster import Cluster, run
from geoseg.errors import ClusterError, OptionsError, ReadError, SceneError

CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "cluster").glob("*.yaml"))


def halve(number: int) -> float:
    if number == 7:
        raise SceneError("seven cannot be halved")
    return number / 2


def die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die_once(work: tuple[int, str]) -> int:
    number, folder = work
    marker = Path(folder) / f"{number}"
    if number % 4 == 0 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def stumble(folder: str) -> int:
    """Fail to read twice, then succeed; refuse for good if asked to."""
    tries = len(list(Path(folder).iterdir()))
    (Path(folder) / f"{tries}").touch()
    if Path(folder).name == "refused":
        raise SceneError("never")
    if tries < 2:
        raise ReadError("the disk was away")
    return tries


def cores(_: int) -> tuple[int, str | None]:
    import torch

    time.sleep(0.2)
    return torch.get_num_threads(), os.environ.get("GOMP_SPINCOUNT")


def nap(_: int) -> int:
    """Who did it."""
    time.sleep(0.25)
    return os.getpid()


def told(answers: object) -> list[tuple[int, str]]:
    return sorted((item, repr(result)) for item, result in answers)


@pytest.mark.cluster
@pytest.mark.parametrize("workers", [1, 2])
def test_processes_answer_what_the_loop_answers(workers: int) -> None:
    expected = told(run(halve, range(40)))
    assert expected[7] == (7, "SceneError('seven cannot be halved')")
    assert told(run(halve, iter(range(40)), Cluster(kind="local", workers=workers))) == expected


def test_only_what_could_not_be_read_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_PAUSE_S", 0.0)
    folders = [tmp_path / name for name in ("stumbles", "refused")]
    for folder in folders:
        folder.mkdir()
    (_, good), (_, bad) = run(stumble, [str(folder) for folder in folders])
    assert good == 2
    assert isinstance(bad, SceneError)
    assert len(list(folders[1].iterdir())) == 1
    (tmp_path / "again").mkdir()
    ((_, late),) = run(stumble, [str(tmp_path / "again")], retries=1)
    assert isinstance(late, ReadError)


@pytest.mark.cluster
def test_a_task_that_always_kills_its_worker_ends_alone() -> None:
    answers = dict(run(die, range(8), Cluster(kind="local", workers=2)))
    assert isinstance(answers.pop(3), KilledWorker)
    assert answers == {number: number for number in (0, 1, 2, 4, 5, 6, 7)}


@pytest.mark.parametrize("status", ["finished", "lost", "cancelled", "error"])
def test_an_answer_that_has_come_counts_whatever_becomes_of_its_worker(status: str) -> None:
    future = SimpleNamespace(status=status, exception=lambda: KilledWorker("key", None, 3))
    assert cluster._judged(future, (3, "tcp://127.0.0.1:1")) == (3, "tcp://127.0.0.1:1")


def test_a_task_without_an_answer_has_failed_or_the_scheduler_is_gone() -> None:
    killed = KilledWorker("key", None, 3)
    failed = SimpleNamespace(status="error", exception=lambda: killed)
    assert cluster._judged(failed, (KilledWorker, killed, None)) == (killed, "")
    with pytest.raises(ClusterError, match="the scheduler has gone"):
        cluster._judged(SimpleNamespace(status="cancelled"), CancelledError("key"))


@pytest.mark.cluster
def test_nothing_is_lost_when_workers_die(tmp_path: Path) -> None:
    work = [(number, str(tmp_path)) for number in range(9)]
    assert sorted(number for _, number in run(die_once, work, Cluster(kind="local", workers=2))) == list(range(9))


def view(_: int) -> tuple[str, int]:
    """The GPUs that this process sees, and how much memory it may fill."""
    time.sleep(0.25)
    return os.environ["CUDA_VISIBLE_DEVICES"], distributed.get_worker().memory_manager.memory_limit


@pytest.mark.cluster
def test_each_gpu_has_a_process_that_sees_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-1f")
    seen = {answer for _, answer in run(view, range(12), Cluster(kind="cuda"))}
    assert {gpu for gpu, _ in seen} == {"3", "GPU-1f"}
    assert all(memory == distributed.system.MEMORY_LIMIT // 2 for _, memory in seen)


@pytest.mark.cluster
def test_a_worker_that_joins_late_takes_its_share() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as machines:
        answers = run(nap, range(80), Cluster(kind="address", address=machines.scheduler_address))
        names = [next(answers)[1] for _ in range(3)]
        assert len(set(names)) == 1
        machines.scale(2)
        names += [name for _, name in answers]
    assert len(names) == 80
    assert sum(name != names[0] for name in names) > 5


@pytest.mark.cluster
def test_workers_share_the_cores_and_everything_listens_on_loopback() -> None:
    answers, heard = [], set()
    for _, answer in run(cores, range(4), Cluster(kind="local", workers=2, threads=1)):
        answers.append(answer)
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        heard |= {link.laddr.ip for process in family for link in process.net_connections("inet") if link.status == psutil.CONN_LISTEN}
    assert answers == [(1, os.environ.get("GOMP_SPINCOUNT", "5000"))] * 4
    assert heard == {"127.0.0.1"}


@pytest.mark.cluster
def test_a_task_that_no_worker_can_take_fails() -> None:
    with (
        dask.config.set({"distributed.scheduler.no-workers-timeout": "2s"}),
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as machines,
    ):
        asked = Cluster(kind="address", address=machines.scheduler_address, gpu=True)
        ((_, answer),) = run(halve, [2], asked)
    assert isinstance(answer, NoValidWorkerError)


@pytest.mark.cluster
def test_a_scheduler_that_is_not_there_is_refused() -> None:
    with pytest.raises(OptionsError, match=r"127\.0\.0\.1:1: no scheduler answers"):
        list(run(halve, [1], Cluster(kind="address", address="tcp://127.0.0.1:1")))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tcp://10.0.0.1:8786", "is not on this machine and not encrypted"),
        ("tls://10.0.0.1:8786", "tls:// needs tls_ca, tls_cert and tls_key"),
        ("slurm", "expected here, local, local:N"),
        ("local:0", "expected here, local, local:N"),
    ],
)
def test_what_is_no_cluster_is_refused(words: str, message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        Cluster.of(words)


def test_words_and_files(tmp_path: Path) -> None:
    assert Cluster.of("here") == Cluster()
    assert Cluster.of("local:3") == Cluster(kind="local", workers=3)
    path = tmp_path / "c.yaml"
    path.write_text("kind: local\nworker: 3\n")
    with pytest.raises(OptionsError, match="unknown key 'worker'; did you mean 'workers'"):
        Cluster.of(str(path))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_cluster_that_ships_can_be_read(path: Path) -> None:
    assert Cluster.of(str(path)).kind in ("local", "address", "slurm", "cuda")
