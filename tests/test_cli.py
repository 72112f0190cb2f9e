"""The command line, on real files and in real processes: results, resume after kill -9, refusals."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.features
import shapely

from geoseg.cli import main
from geoseg.manifest import Run
from tests.conftest import make_scene
from tests.oracles import model_folder

RNG = np.random.default_rng(5)
METRES = rasterio.Affine(1, 0, 354000, 0, -1, 3057000)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model for pixels of one metre."""
    return model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth noise with a hole, 700 x 900 pixels of one metre."""
    coarse = RNG.random((3, 30, 38))
    smooth = np.stack([np.kron(band, np.ones((24, 24)))[:700, :900] for band in coarse])
    pixels = np.clip(255 * smooth + RNG.normal(0, 12, smooth.shape), 1, 255).astype(np.uint8)
    pixels[:, 300:420, 500:650] = 0
    return make_scene(tmp_path_factory.mktemp("scenes") / "photo.tif", pixels, nodata=0, transform=METRES)


def geoseg(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line, without the cost of a process of its own."""
    line = list(map(str, arguments))
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["geoseg", *line])
        main()
    return subprocess.CompletedProcess(line, int(end.value.code or 0), out.getvalue(), err.getvalue())


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def reference(photo: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of an undisturbed run, in one block."""
    out = tmp_path_factory.mktemp("reference")
    done = geoseg("predict", photo, "-m", model, "--out", out, "--confidence", "--scores", "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    return out


def test_predict_writes_everything_that_it_promises(reference: Path, photo: Path) -> None:
    assert sorted(path.name for path in reference.iterdir()) == [
        "photo.manifest.json",
        "photo_classes.tif",
        "photo_classes.tif.aux.xml",
        "photo_confidence.tif",
        "photo_polygons.gpkg",
        "photo_quicklook.png",
        "photo_scores.tif",
    ]
    manifest = json.loads((reference / "photo.manifest.json").read_text())
    with rasterio.open(reference / "photo_classes.tif") as classes, rasterio.open(photo) as scene:
        assert (classes.transform, classes.crs, classes.shape) == (scene.transform, scene.crs, scene.shape)
        map_, hole = classes.read(1), (scene.read() == 0).all(0)
    np.testing.assert_array_equal(map_ == 0, hole)
    assert manifest["nodata_pixels"] == hole.sum()
    for facts in manifest["classes"].values():
        assert facts["pixels"] == (map_ == facts["id"]).sum()
        assert facts["area_m2"] == pytest.approx(facts["pixels"], rel=2e-3)
    with rasterio.open(reference / "photo_scores.tif") as scores, rasterio.open(reference / "photo_confidence.tif") as confidence:
        stored = scores.read()
        assert np.abs(stored.max(0)[~hole].astype(int) - confidence.read(1)[~hole]).max() <= 1
        assert np.abs(stored[:, ~hole].astype(int).sum(0) - 254).max() <= 2
        assert (stored[:, hole] == 255).all()


def test_polygons_are_the_raster(reference: Path) -> None:
    with rasterio.open(reference / "photo_classes.tif") as raster:
        map_, transform = raster.read(1), raster.transform
    back = np.zeros_like(map_)
    for name, _ in pyogrio.list_layers(reference / "photo_polygons.gpkg"):
        if name == "layer_styles":
            continue
        _, _, shapes, (ids, _, areas, _, confidence) = pyogrio.raw.read(reference / "photo_polygons.gpkg", layer=name)
        geometries = shapely.from_wkb(shapes)
        assert shapely.is_valid(geometries).all()
        np.testing.assert_allclose(areas, shapely.area(geometries), rtol=2e-3)
        assert ((confidence > 0.2) & (confidence <= 1)).all()
        rasterio.features.rasterize(zip(geometries, ids.tolist(), strict=True), out=back, transform=transform)
    np.testing.assert_array_equal(back, map_)


@pytest.mark.parametrize("block", [512, 200])
def test_results_do_not_depend_on_blocks(reference: Path, photo: Path, model: Path, tmp_path: Path, block: int) -> None:
    done = geoseg("predict", photo, "-m", model, "--out", tmp_path, "--confidence", "--scores", "--precision", "fp32", "--block", block)
    assert done.returncode == 0, done.stderr
    for name in ("classes.tif", "classes.tif.aux.xml", "confidence.tif", "scores.tif", "polygons.gpkg"):
        assert digest(tmp_path / f"photo_{name}") == digest(reference / f"photo_{name}"), name


def test_kill_9_at_any_moment_and_run_again(reference: Path, photo: Path, model: Path, tmp_path: Path) -> None:
    """Whatever was finished is not done again, and the result is that of the undisturbed run, bit for bit."""
    rng = random.Random(11)
    arguments = ("predict", photo, "-m", model, "--out", tmp_path, "--confidence", "--scores", "--precision", "fp32", "--block", 128)
    work = tmp_path / ".geoseg-photo"
    kept: set[str] = set()
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "geoseg.cli", *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wanted = len(kept) + rng.randint(2, 9)
        while process.poll() is None and len(finished_blocks(work)) < wanted:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.wait()
        assert kept <= finished_blocks(work)
        kept = finished_blocks(work)
    assert 6 <= len(kept) < 48
    done = geoseg(*arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "photo.manifest.json").read_text())["blocks"] == {"total": 48, "taken_up": len(kept)}
    for name in ("classes.tif", "classes.tif.aux.xml", "confidence.tif", "scores.tif", "polygons.gpkg"):
        assert digest(tmp_path / f"photo_{name}") == digest(reference / f"photo_{name}"), name
    assert not work.exists()


def finished_blocks(work: Path) -> set[str]:
    return {path.name for path in work.glob("block-*.tif") if ".part" not in path.name}


def test_a_finished_run_says_so_and_force_makes_it_again(reference: Path, photo: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(reference, out)
    line = ("predict", photo, "-m", model, "--out", out, "--confidence", "--scores", "--precision", "fp32")
    again = geoseg(*line)
    assert again.returncode == 0, again.stderr
    assert "Already finished" in again.stdout
    other = geoseg(*line, "--tile", 128)
    assert other.returncode == 2
    assert "results of another run are there (other options)" in other.stderr
    forced = geoseg(*line, "--tile", 128, "--force", "--json")
    assert forced.returncode == 0, forced.stderr
    assert json.loads(forced.stdout)["facts"]["options"]["tile"] == 128


def test_a_part_has_the_answers_of_the_whole(reference: Path, photo: Path, model: Path, tmp_path: Path) -> None:
    with rasterio.open(photo) as scene:
        box = (scene.transform.c + 333, scene.transform.f - 333, scene.transform.c + 634, scene.transform.f - 111)
    done = geoseg("predict", photo, "-m", model, "--out", tmp_path, "--precision", "fp32", "--bbox", ",".join(map(str, box)))
    assert done.returncode == 0, done.stderr
    with rasterio.open(tmp_path / "photo_classes.tif") as part, rasterio.open(reference / "photo_classes.tif") as whole:
        np.testing.assert_array_equal(part.read(1), whole.read(1)[111:333, 333:634])
        assert part.bounds == pytest.approx(box)


def test_other_pixel_sizes_are_resampled_for_the_network_and_written_on_the_scenes_own_grid(photo: Path, tmp_path: Path) -> None:
    coarse = model_folder(tmp_path / "coarse", resolution_m=2.3)
    done = [
        geoseg("predict", photo, "-m", coarse, "--out", tmp_path / str(block), "--block", block, "--precision", "fp32")
        for block in (8192, 250)
    ]
    assert [d.returncode for d in done] == [0, 0], done[0].stderr
    one, other = (tmp_path / str(block) / "photo_classes.tif" for block in (8192, 250))
    assert digest(one) == digest(other)
    with rasterio.open(one) as classes, rasterio.open(photo) as scene:
        assert (classes.transform, classes.shape) == (scene.transform, scene.shape)
        np.testing.assert_array_equal(classes.read(1) == 0, (scene.read() == 0).all(0))


def test_deep_scenes_are_stretched_once_and_say_so(model: Path, tmp_path: Path) -> None:
    pixels = RNG.integers(300, 4000, (3, 90, 110)).astype(np.uint16)
    scene = make_scene(tmp_path / "deep.tif", pixels, transform=METRES)
    done = geoseg("predict", scene, "-m", model, "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    stretch = json.loads(done.stdout)["facts"]["stretch"]
    np.testing.assert_allclose(stretch["low"], np.percentile(pixels, 2, axis=(1, 2)), rtol=0.05)
    np.testing.assert_allclose(stretch["high"], np.percentile(pixels, 98, axis=(1, 2)), rtol=0.05)


def test_a_scene_without_data_gives_an_empty_result_and_a_warning(model: Path, tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "empty.tif", np.zeros((3, 50, 60), np.uint8), nodata=0, transform=METRES)
    done = geoseg("predict", scene, "-m", model, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "no valid pixel" in done.stderr
    assert pyogrio.read_info(tmp_path / "out" / "empty_polygons.gpkg", layer="class_0")["features"] == 0


LIMITED = """
import resource, signal, sys
import geoseg.verbs.predict
from geoseg.cli import main

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv = ["geoseg", *sys.argv[2:]]
main()
"""

REFUSALS = {
    "missing file": (("nothing.tif",), "nothing.tif: no such file"),
    "not a raster": (("text.tif",), "text.tif: "),
    "one band": (("grey.tif",), "band"),
    "no model": (("good.tif", "-m", "nowhere"), "model 'nowhere'"),
    "bad tile": (("good.tif", "--tile", "60"), "try 56"),
    "bad bbox": (("good.tif", "--bbox", "0,0,1,1"), "do not overlap"),
    "bad device": (("good.tif", "--device", "cuda:77"), "is not there"),
    "far pixel": (("far.tif",), "on the ground"),
}


@pytest.fixture(scope="session")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that predict must refuse, and a good one."""
    folder = tmp_path_factory.mktemp("bad")
    pixels = RNG.integers(0, 256, (3, 40, 50), dtype=np.uint8)
    make_scene(folder / "good.tif", pixels, transform=METRES)
    make_scene(folder / "grey.tif", pixels[:1], transform=METRES)
    make_scene(folder / "far.tif", pixels, transform=rasterio.Affine(500, 0, 300000, 0, -500, 3000000))
    (folder / "text.tif").write_text("hello")
    return folder


@pytest.mark.parametrize("kind", REFUSALS)
def test_refusals_are_one_line_and_leave_nothing(bad: Path, model: Path, tmp_path: Path, kind: str) -> None:
    (name, *more), message = REFUSALS[kind]
    result = geoseg("predict", bad / name, *([] if "-m" in more else ["-m", model]), "--out", tmp_path / "out", *more)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("geoseg: error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("limit", "kept"), [(2_000, False), (900_000, True)])
def test_a_full_disk_is_one_line_and_leaves_no_half_result(photo: Path, model: Path, tmp_path: Path, limit: int, kept: bool) -> None:
    """No file may grow beyond a limit, which is what a full disk looks like to the writer; blocks that were finished stay."""
    line = ["predict", str(photo), "-m", str(model), "--out", str(tmp_path / "out")]
    cache = {"PYTHONDONTWRITEBYTECODE": "1", "NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *line], capture_output=True, text=True, check=False, env={**os.environ, **cache}
    )
    assert done.returncode == 2, done.stderr
    assert "disk" in done.stderr.splitlines()[-1]
    assert ("finished blocks are kept" in done.stderr) == kept
    assert [path.name for path in (tmp_path / "out").glob("*")] == ([".geoseg-photo"] if kept else [])
    assert not kept or all(
        path.name in ("lock", "run.json") or path.name.startswith("block-") for path in (tmp_path / "out" / ".geoseg-photo").iterdir()
    )


def test_results_that_cannot_be_written_are_refused(photo: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file, not a folder")
    done = geoseg("predict", photo, "-m", model, "--out", tmp_path / "out")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "cannot be written" in done.stderr


def test_unfinished_work_of_another_run_is_not_thrown_away(photo: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Run(tmp_path, "photo", {"other": 1}) as run:
        (run.work / "block-0-0-1-1.tif").write_bytes(b"x")
        raise KeyboardInterrupt
    done = geoseg("predict", photo, "-m", model, "--out", tmp_path)
    assert done.returncode == 2
    assert "unfinished work of another run" in done.stderr


def test_info_plan_and_models(photo: Path, bad: Path, model: Path) -> None:
    facts = json.loads(geoseg("info", photo, "-m", model, "--json").stdout)
    assert (facts["width"], facts["height"], facts["fits"][:4]) == (900, 700, "yes:")
    facts = json.loads(geoseg("info", bad / "grey.tif", "-m", model, "--json").stdout)
    assert facts["fits"].startswith("no: ")
    facts = json.loads(geoseg("plan", photo, "-m", model, "--json").stdout)
    assert facts["tiles"] == 15 * 19
    assert facts["seconds"] > 0
    assert "default" in json.loads(geoseg("models", "list", "--json").stdout)
    assert json.loads(geoseg("models", "show", model).stdout)["mlm:name"] == "test"


def test_shaped_polygons_in_one_layer_of_another_format(photo: Path, model: Path, tmp_path: Path) -> None:
    words = ("--smooth", "--simplify-m", 0.3, "--min-area-m2", 2, "--min-hole-m2", 2, "--regularize", "class_1", "--connectivity", 8)
    line = ("predict", photo, "-m", model, "--out", tmp_path, "--no-quicklook", "--format", "parquet", *words)
    done = geoseg(*line)
    assert done.returncode == 0, done.stderr
    found = geopandas.read_parquet(tmp_path / "photo_polygons.parquet")
    with rasterio.open(tmp_path / "photo_classes.tif") as raster:
        valid = int((raster.read(1) > 0).sum()) * abs(raster.transform.determinant)
    assert found.area.sum() == pytest.approx(valid, rel=1e-9)
    assert found.geometry.is_valid.all()
    assert shapely.coverage_is_valid(found.geometry.array)
    assert "Already finished" in geoseg(*line).stdout
    refused = geoseg(*line, "--regularize", "house", "--force")
    assert refused.returncode == 2
    assert "'house' is not in the legend" in refused.stderr
