"""Jobs of a real SLURM of one node, started here; and what is submitted and refused, which needs none."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from geoseg import cluster
from geoseg.cluster import Cluster, run
from geoseg.errors import OptionsError
from tests.conftest import make_scene
from tests.oracles import model_folder
from tests.slurm.loopback import missing, slurm
from tests.slurm.work import cancel_once, gpu, look_around
from tests.test_batch import digests, states
from tests.test_cli import METRES

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "cluster" / "slurm.yaml"
SHORT = {"kind": "slurm", "cores": 1, "memory": "3GiB", "walltime": "00:10:00"}


@pytest.fixture(scope="module")
def surroundings() -> Iterator[dict[str, str]]:
    """An environment in which ``sbatch`` works."""
    if absent := missing():
        pytest.skip(f"SLURM on loopback needs {', '.join(absent)}")
    pytest.importorskip("dask_jobqueue")
    with tempfile.TemporaryDirectory(prefix="slurm") as folder, slurm(Path(folder)) as environment:
        yield environment | {"PYTHONPATH": str(ROOT)}


@pytest.fixture
def submitting(surroundings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process may submit jobs; their logs are in the folder."""
    for name in ("SLURM_CONF", "PYTHONPATH"):
        monkeypatch.setenv(name, surroundings[name])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jobs_left(environment: dict[str, str]) -> str:
    return subprocess.run(["squeue", "-h"], env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.cluster
def test_jobs_make_the_same_files_as_the_loop(surroundings: dict[str, str], tmp_path: Path) -> None:
    model, rng = model_folder(tmp_path / "model"), np.random.default_rng(4)
    (tmp_path / "scenes").mkdir()
    for number in range(8):
        coarse = rng.random((3, 5, 4 + number))
        make_scene(
            tmp_path / "scenes" / f"s{number}.tif", (1 + 250 * np.kron(coarse, np.ones((20, 20)))).astype(np.uint8), transform=METRES
        )
    line = [sys.executable, "-m", "geoseg.cli", "batch", *map(str, sorted((tmp_path / "scenes").iterdir())), "-m", str(model)]
    line += ["--precision", "fp32", "--no-quicklook", "--quiet", "--out"]
    cores = str(Cluster.of(str(CONFIG)).cores)  # on which oneDNN's sums depend; torch listens to the least of these two
    surroundings = surroundings | {"OMP_NUM_THREADS": cores, "MKL_NUM_THREADS": cores}
    for name, words in (("loop", "here"), ("jobs", str(CONFIG))):
        folder = tmp_path / name
        folder.mkdir()
        whole = [*line, str(folder / "out"), "--cluster", words]
        done = subprocess.run(whole, cwd=folder, env=surroundings, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stderr
    assert states(tmp_path / "jobs" / "out") == {f"s{number}": "done" for number in range(8)}
    assert digests(tmp_path / "jobs" / "out") == digests(tmp_path / "loop" / "out")
    logs = [path.read_text() for path in (tmp_path / "jobs").glob("geoseg-*.err")]
    assert len([log for log in logs if "Registered to:      tls://127.0.0.1:" in log]) == 2
    assert not list((tmp_path / "jobs").glob(".*")), "certificates stay"
    assert "geoseg" not in jobs_left(surroundings)


@pytest.mark.cluster
def test_jobs_listen_on_loopback_with_one_task_and_their_cores_each(submitting: Path) -> None:
    answers = [answer for _, answer in run(look_around, range(12), Cluster(**SHORT))]
    assert {answer[1:] for answer in answers} == {("1", 1, frozenset({"127.0.0.1"}))}
    assert len({answer[0] for answer in answers} - {None}) == 2


@pytest.mark.cluster
@pytest.mark.slow
def test_a_cancelled_job_loses_nothing_and_is_replaced(submitting: Path) -> None:
    work = [(number, str(submitting)) for number in range(8)]
    assert sorted(number for _, number in run(cancel_once, work, Cluster(**SHORT, jobs=1))) == list(range(8))
    assert len(list(submitting.glob("geoseg-*.err"))) == 2


@pytest.mark.cluster
def test_what_sbatch_refuses_is_told_at_once(submitting: Path) -> None:
    with pytest.raises(OptionsError, match=r"sbatch refuses the jobs \(.*[Pp]artition"):
        list(run(look_around, [1], Cluster(**SHORT, partition="nowhere")))


def test_a_region_is_mapped_and_summed_up(tmp_path: Path) -> None:
    model, rng = model_folder(tmp_path / "model"), np.random.default_rng(5)
    (tmp_path / "scenes").mkdir()
    for name in ("a", "b"):
        pixels = rng.integers(1, 256, (3, 50, 60), dtype=np.uint8)
        make_scene(tmp_path / "scenes" / f"{name}.tif", pixels, transform=METRES)
    (tmp_path / "scenes" / "c.tif").write_text("not a raster")
    line = [
        sys.executable,
        str(ROOT / "pipelines" / "region_slurm.py"),
        str(tmp_path / "scenes"),
        str(tmp_path / "out"),
        "here",
        str(model),
    ]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "2 done, 1 failed" in done.stdout
    with (tmp_path / "out" / "region.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["pixels"]) for row in rows) == 2 * 50 * 60
    assert sum(float(row["area_m2"]) for row in rows) == pytest.approx(2 * 50 * 60, rel=1e-2)


def script(asked: Cluster) -> str:
    with cluster._slurm(asked) as machines:
        assert machines.scheduler_address.startswith("tls://127.0.0.1:")
        assert "//127.0.0.1:" in machines.dashboard_link
        return str(machines.job_script())


@pytest.mark.cluster
def test_the_job_script_says_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask_jobqueue")
    monkeypatch.chdir(tmp_path)
    plain = script(Cluster(**SHORT | {"walltime": "1-00:00:00", "cores": 3}))
    header, worker = plain.splitlines()[:-1], plain.splitlines()[-1]
    assert {"#SBATCH --cpus-per-task=3", "#SBATCH --mem=3G", "#SBATCH -t 1-00:00:00", "export OMP_NUM_THREADS=3"} <= set(header)
    for part in ("--nthreads 1 ", "--lifetime 80352s --lifetime-stagger 1728s", "--host 127.0.0.1", "--protocol tls://", "--tls-key "):
        assert part in worker
    assert 80352 + 1728 == 0.95 * 86400
    assert "GPU" not in plain
    assert "PRIVATE KEY" not in plain
    rich = script(
        Cluster(
            **SHORT,
            gpu=True,
            interface="lo",
            partition="night",
            account="me",
            directives=("--qos=low",),
            skip_directives=("--mem",),
            prologue=("module load x",),
        )
    )
    assert {"#SBATCH -p night", "#SBATCH -A me", "#SBATCH --gres=gpu:1", "#SBATCH --qos=low", "module load x"} <= set(rich.splitlines())
    assert "--mem=" not in rich
    assert "--resources GPU=1" in rich
    assert "--interface lo" in rich
    assert "--host" not in rich
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OptionsError, match="no sbatch on the PATH"):
        list(run(gpu, [1], Cluster(**SHORT)))
    (tmp_path / "sbatch").write_text("")
    (tmp_path / "sbatch").chmod(0o755)
    with pytest.raises(OptionsError, match="nowhere is no folder"):
        list(run(gpu, [1], Cluster(**SHORT, shared_temp=tmp_path / "nowhere")))
    monkeypatch.setitem(sys.modules, "dask_jobqueue.slurm", None)
    with pytest.raises(OptionsError, match=r"dask_jobqueue.*install geoseg\[slurm\]"):
        list(run(gpu, [1], Cluster(**SHORT)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: slurm\nmemroy: 4GiB\n", "unknown key 'memroy'; did you mean 'memory'"),
        ("kind: slurm\nworkers: 3\n", "key 'workers' is not for kind 'slurm'; "),
        ("kind: cuda\nthread: 3\n", "unknown key 'thread'; did you mean 'threads'"),
        ("kind: local\njobs: 3\n", "key 'jobs' is not for kind 'local'; expected one of gpu, no_workers_timeout, report, threads, workers"),
        ("kind: slurm\nwalltime: 10:00:00\n", "walltime: .*36000 is no time.*with the quotes"),
        ("kind: slurm\nwalltime: '90'\n", "walltime: .*'90' is no time"),
        ("kind: slurm\nmemory: much\n", "memory: .*'much' is no amount"),
    ],
)
def test_a_wrong_table_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(OptionsError, match=message):
        Cluster.of(str(path))


def test_every_key_belongs_to_a_kind() -> None:
    assert {key for keys in cluster._KEYS.values() for key in keys.split()} == set(Cluster.model_fields) - {"kind"}


@pytest.mark.cluster
def test_each_gpu_has_a_process_that_sees_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, 1")
    answers = [answer for _, answer in run(gpu, range(8), Cluster.of("cuda"))]
    assert sorted(set(answers)) == ["0", "1"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0, 1"


@pytest.mark.parametrize("visible", ["", "-1", None])
def test_a_machine_without_a_gpu_is_told(visible: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(OptionsError, match="shows no GPU"):
        list(run(gpu, [1], Cluster(kind="cuda")))
