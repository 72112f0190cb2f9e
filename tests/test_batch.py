"""Many scenes: all done, none twice, bad ones named, whoever does the work."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from distributed import LocalCluster

from geoseg.cluster import Cluster
from geoseg.engine import Options
from geoseg.errors import OptionsError, ReadError
from geoseg.verbs.batch import TABLE, Settings, batch, listed, matched, status
from geoseg.verbs.predict import predict
from tests.conftest import make_scene
from tests.oracles import model_folder
from tests.test_cli import METRES, geoseg


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four sound scenes, one that is no GeoTIFF, and one that is not there."""
    folder = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(7)
    for number in range(4):
        coarse = rng.random((3, 6 + number, 8))
        pixels = (1 + 250 * np.kron(coarse, np.ones((20, 20)))).astype(np.uint8)
        make_scene(folder / f"scene{number}.tif", pixels, nodata=0, transform=METRES)
    (folder / "broken.tif").write_bytes(b"II*\0" + bytes(100))
    return [*sorted(folder.glob("scene*.tif")), folder / "broken.tif", folder / "missing.tif"]


@pytest.fixture(scope="module")
def settings(model: Path) -> Settings:
    return Settings(model=str(model), options=Options(precision="fp32"), quicklook=False)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*_*")) if path.is_file()}


def states(folder: Path) -> dict[str, str]:
    return {Path(row["scene"]).stem: row["state"] for row in status(folder)}


EXPECTED = {**{f"scene{number}": "done" for number in range(4)}, "broken": "failed", "missing": "failed"}


@pytest.fixture(scope="module")
def reference(scenes: list[Path], settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the loop."""
    out = tmp_path_factory.mktemp("reference")
    count = batch(scenes, out=out, settings=settings)
    assert count == {"done": 4, "failed": 2}
    assert states(out) == EXPECTED
    return out


def test_bad_scenes_are_named_with_their_reason_and_stop_nothing(reference: Path) -> None:
    reasons = {Path(row["scene"]).stem: row["reason"] for row in status(reference) if row["state"] == "failed"}
    assert "broken.tif" in reasons["broken"]
    assert "missing.tif" in reasons["missing"]
    assert len(digests(reference)) == 4 * 3
    assert all(row["seconds"] > 0 and row["bytes"] > 0 and row["megapixels"] > 0 for row in status(reference) if row["state"] == "done")


@pytest.mark.cluster
@pytest.mark.parametrize("workers", [1, 2])
def test_processes_make_the_same_files_as_the_loop(
    scenes: list[Path], settings: Settings, reference: Path, tmp_path: Path, workers: int
) -> None:
    batch(scenes, out=tmp_path, settings=settings, cluster=Cluster(kind="local", workers=workers))
    assert states(tmp_path) == EXPECTED
    assert digests(tmp_path) == digests(reference)


@pytest.mark.cluster
@pytest.mark.parametrize(("workers", "block"), [(1, 64), (2, 96), (4, 64), (2, None)])
def test_the_blocks_of_a_scene_on_workers_give_the_same_files(
    scenes: list[Path], settings: Settings, reference: Path, tmp_path: Path, workers: int, block: int | None
) -> None:
    manifest = predict(
        scenes[3],
        settings.model,
        out=tmp_path,
        options=settings.options,
        quicklook=False,
        block=block,
        cluster=Cluster(kind="local", workers=workers),
    )
    assert manifest["blocks"]["total"] == (1 if block is None else -(-180 // block) * -(-160 // block))
    expected = {name: digest for name, digest in digests(reference).items() if name.startswith("scene3")}
    assert digests(tmp_path) == expected


@pytest.mark.cluster
def test_threads_of_one_process_make_the_same_files(scenes: list[Path], settings: Settings, reference: Path, tmp_path: Path) -> None:
    """The model is one for all of them."""
    listening = {"protocol": "tcp", "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=1, threads_per_worker=3, processes=False, **listening) as threads:
        cluster = Cluster(kind="address", address=threads.scheduler_address, threads=1)
        batch(scenes, out=tmp_path / "scenes", settings=settings, cluster=cluster)
        predict(scenes[3], settings.model, out=tmp_path / "blocks", options=settings.options, quicklook=False, block=64, cluster=cluster)
    assert digests(tmp_path / "scenes") == digests(reference)
    assert digests(tmp_path / "blocks").items() <= digests(reference).items()


@pytest.mark.cluster
def test_a_scene_that_cannot_be_read_on_workers_keeps_what_is_done(scenes: list[Path], settings: Settings, tmp_path: Path) -> None:
    scene = tmp_path / "torn.tif"
    whole = scenes[3].read_bytes()
    scene.write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(ReadError, match=r"torn\.tif"):
        predict(scene, settings.model, out=tmp_path / "out", block=64, cluster=Cluster(kind="local", workers=2))
    assert not list((tmp_path / "out").glob("*_*"))


def test_what_is_done_is_not_done_again(scenes: list[Path], settings: Settings, tmp_path: Path) -> None:
    batch(scenes[:2], out=tmp_path, settings=settings)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*_*")}
    (tmp_path / "scene1_classes.tif").unlink()
    seen = []
    batch(scenes[:3], out=tmp_path, settings=settings, watch=lambda count, _: seen.append(dict(count)))
    assert seen[0] == {"done": 1, "waiting": 2}
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*_*")}
    assert all(after[path] == moment for path, moment in before.items() if path.name.startswith("scene0"))
    reasons = {Path(row["scene"]).stem: row["reason"] for row in status(tmp_path)}
    assert "missing or changed" in reasons["scene1"], "somebody removed a result: geoseg asks before it makes it again"
    assert states(tmp_path)["scene2"] == "done"


def test_failed_scenes_wait_until_they_are_asked_for(scenes: list[Path], settings: Settings, tmp_path: Path) -> None:
    late = tmp_path / "late.tif"
    assert batch([late], out=tmp_path / "out", settings=settings) == {"failed": 1}
    late.write_bytes(scenes[0].read_bytes())
    assert batch([late], out=tmp_path / "out", settings=settings) == {"failed": 1}
    assert batch([late], out=tmp_path / "out", settings=settings, retry=True) == {"done": 1}


def test_a_scene_at_which_the_process_died_three_times_is_left_alone(scenes: list[Path], model: Path, tmp_path: Path) -> None:
    code = "import os, sys; from geoseg.verbs import batch; batch._one = lambda job: os.kill(os.getpid(), 9); "
    code += "batch.batch(sys.argv[2:], out=sys.argv[1], settings=batch.Settings(model=os.environ['MODEL'], quicklook=False))"
    for _ in range(3):
        line = [sys.executable, "-c", code, str(tmp_path), str(scenes[0])]
        assert subprocess.run(line, check=False, env=os.environ | {"MODEL": str(model)}).returncode == -signal.SIGKILL
    count = batch(scenes[:1], out=tmp_path, settings=Settings(model=str(model), quicklook=False))
    assert count == {"quarantined": 1}
    assert "ended 3 times" in status(tmp_path)[0]["reason"]
    assert batch(scenes[:1], out=tmp_path, settings=Settings(model=str(model), quicklook=False), retry=True) == {"done": 1}


def test_killed_and_given_again_nothing_is_lost_and_nothing_done_twice(
    scenes: list[Path], model: Path, reference: Path, tmp_path: Path
) -> None:
    line = [sys.executable, "-m", "geoseg.cli", "batch", *map(str, scenes), "--out", str(tmp_path), "-m", str(model)]
    line += ["--precision", "fp32", "--no-quicklook", "--quiet"]
    for pause in (2.5, 4.5):
        process = subprocess.Popen(line, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(pause)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run(line, check=False, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert states(tmp_path) == EXPECTED
    assert digests(tmp_path) == digests(reference)


def test_other_settings_and_equal_names_are_refused(scenes: list[Path], settings: Settings, reference: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match=r"a batch with other settings was begun here \(other options\)"):
        batch(scenes, out=reference, settings=Settings(model=settings.model, options=Options(precision="fp32", tile=64), quicklook=False))
    twin = tmp_path / "scene0.tif"
    with pytest.raises(OptionsError, match="their results would have one name"):
        batch([scenes[0], twin], out=tmp_path, settings=settings)
    with pytest.raises(OptionsError, match="no scene was given"):
        batch([], out=tmp_path, settings=settings)


def test_the_command_line_names_what_failed_and_ends_with_3(scenes: list[Path], model: Path, tmp_path: Path) -> None:
    table = tmp_path / "scenes.csv"
    table.write_text("scene\n" + "\n".join(str(path) for path in (scenes[0], scenes[-1])), encoding="utf-8")
    line = ("batch", "--manifest", table, "--out", tmp_path / "out", "-m", model, "--no-quicklook")
    done = geoseg(*line)
    assert done.returncode == 3
    assert "geoseg: failed:" in done.stderr
    assert "missing.tif" in done.stderr
    assert "2 scenes: 1 done, 1 failed." in done.stdout
    rows = json.loads(geoseg("batch", "status", "--out", tmp_path / "out", "--json").stdout)
    assert [row["state"] for row in rows] == ["done", "failed"]
    assert geoseg("batch", "status", "--out", tmp_path / "nowhere").returncode == 2


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"no table" * 200):
        (tmp_path / TABLE).write_bytes(content)
        with pytest.raises(OptionsError, match="is no table of a batch"):
            status(tmp_path)


def test_patterns_may_be_absolute_and_have_to_name_something(scenes: list[Path], tmp_path: Path) -> None:
    folder = scenes[0].parent
    assert matched(f"{folder}/**/scene?.tif") == scenes[:4]
    with pytest.raises(OptionsError, match="names no file"):
        matched(f"{folder}/*.jp2")


def test_a_list_without_scenes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scenes.csv"
    path.write_text("path\na.tif\n", encoding="utf-8")
    with pytest.raises(OptionsError, match="no column 'scene'"):
        listed(path)
    with pytest.raises(OptionsError, match="no readable CSV file"):
        listed(tmp_path / "none.csv")
