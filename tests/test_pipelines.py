"""Scripts and notebooks run as they are."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import rasterio
import yaml
from nbclient import NotebookClient
from PIL import Image

import geoseg
from geoseg.datasets import LabelledSet
from geoseg.legend import ISPRS
from tests import layouts
from tests.conftest import make_scene
from tests.oracles import model_folder
from tests.toys import toy_data

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "configs" / "train"
TRAINS = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore:.*treespec.*")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_a_folder_is_predicted_and_a_bad_scene_stops_nothing(tmp_path: Path) -> None:
    scenes, model = tmp_path / "scenes", model_folder(tmp_path / "model")
    scenes.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 50, 60), dtype=np.uint8)
    for name in ("a", "c"):
        make_scene(scenes / f"{name}.tif", pixels, transform=rasterio.Affine(1, 0, 354000, 0, -1, 3057000))
    (scenes / "b.tif").write_text("not a raster")
    line = [sys.executable, str(ROOT / "pipelines" / "predict_folder.py"), str(scenes), str(tmp_path / "out"), str(model)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert [row.split()[0] for row in done.stdout.splitlines()] == ["done", "failed", "done"]
    assert len(list((tmp_path / "out").glob("*_classes.tif"))) == 2


def _main(name: str) -> Any:
    """The function ``main`` of a script, without a process of its own."""
    return runpy.run_path(str(ROOT / "pipelines" / name))["main"]


def _small(recipe: Path, target: Path, **change: Any) -> Path:
    """A shipped recipe with a small network and a few steps."""
    table = yaml.safe_load(recipe.read_text())
    options = {"encoder_name": "tu-resnet10t", "encoder_depth": 3, "decoder_channels": [16, 16, 16]}
    table["model"] |= {"architecture": "unet", "options": options, "tile": 64, "overlap": 16}
    table["chips"] |= {"size": 32, "batch": 4}
    table["schedule"] |= {"max_steps": 30, "validate_every": 30, "learning_rate": 0.01, "average": 0.5}
    table |= {"workers": 0, "precision": "32-true"} | change
    target.write_text(yaml.safe_dump(table))
    return target


@TRAINS
def test_potsdam_from_the_published_folder_to_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = layouts.potsdam(tmp_path / "Potsdam", ("2_10", "7_8", "2_13", "7_13"), heights=False)
    recipe, main = _small(RECIPES / "potsdam.yaml", tmp_path / "recipe.yaml"), _main("potsdam.py")
    main(data, tmp_path / "out", str(recipe))
    told = capsys.readouterr().out
    assert "2 of 2 test tiles mapped: top_potsdam_7_13" in told
    facts = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert facts["protocol"] == "isprs-eroded"
    assert len(facts["scenes"]) == 2
    last = told.splitlines()[-1].split()
    assert last[:2] == ["overall", "accuracy"]
    assert float(last[2]) == pytest.approx(100 * facts["measures"]["pixel_accuracy"], abs=0.005)
    assert facts["measures"]["pixel_accuracy"] > 0.5  # six shades of grey, thirty steps
    with pytest.raises(geoseg.GeosegError, match="has no image of ISPRS Potsdam"):
        main(tmp_path / "out" / "maps", tmp_path / "other", str(recipe))


@TRAINS
def test_spacenet_from_the_published_folder_to_f1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    data = layouts.spacenet(tmp_path / "AOI_2_Vegas_Train", images=(1, 3, 4, 5, 6))
    recipe, main = _small(RECIPES / "spacenet.yaml", tmp_path / "recipe.yaml"), _main("spacenet.py")
    main(data, tmp_path / "out", str(recipe))
    facts = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert facts["protocol"] == "spacenet"
    assert len(facts["scenes"]) == 2  # 3 and 6 are held out
    assert f"f1        {facts['measures']['f1']:.4f}" in capsys.readouterr().out
    main(data, tmp_path / "more", str(tmp_path / "out" / "model"))
    assert capsys.readouterr().out.startswith("5 images")


def test_sets_are_scored_site_by_site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = toy_data(tmp_path, ["north_1", "north_2", "south_7"])
    found = _main("score_sets.py")(tmp_path / "out", "default", [f"{data / 'toy'}:train", str(data / "toy")])
    assert {name: len(facts["scenes"]) for name, facts in found.items()} == {
        "toy-train all": 2,
        "toy-train north": 2,
        "toy all": 1,
        "toy south": 1,
    }
    assert found["toy south"]["labelled_pixels"] == np.count_nonzero(Image.open(data / "toy" / "labels" / "south_7.png"))
    assert capsys.readouterr().out.count("mIoU") == 4
    assert set(json.loads((tmp_path / "out" / "toy.json").read_text())) == {"toy all", "toy south"}


@TRAINS
def test_a_few_chips_are_learnt_from_with_and_without_the_default_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, main = toy_data(tmp_path, "abcd"), _main("few_chips.py")
    main.__globals__["STEPS"] = 2
    rows = main(tmp_path / "out", f"{data / 'toy'}:train", 1, 2)
    assert [set(row) for row in rows] == [{"tuned", "scratch"}] * 2
    assert all(0 <= iou <= 1 for row in rows for iou in row.values())
    assert geoseg.ModelCard.read(tmp_path / "out" / "draw_0" / "tuned")[0].training_data[0].startswith("fine-tuned from: geoseg-default")
    difference = np.mean([row["tuned"] - row["scratch"] for row in rows])
    assert f"fine-tuning over scratch: {difference:+.3f} [" in capsys.readouterr().out


def test_polygons_are_drawn_where_labels_leave_a_class_open(tmp_path: Path) -> None:
    data = toy_data(tmp_path, "ab")
    everywhere = [[-1, -1], [80, -1], [80, 80], [-1, 80]]
    top, left = [*everywhere[:2], [80, 5], [-1, 5]], [[0, 0], [0, 80], [9, 80], [9, 0]]
    shapes = {"a": [["tree", everywhere], ["building", top], ["ignore", left]]}
    (tmp_path / "shapes.yaml").write_text(yaml.safe_dump({"title": "T", "licence": "CC0", "images": shapes}))
    made = LabelledSet.read(_main("draw_labels.py")(tmp_path / "shapes.yaml", data / "toy", tmp_path / "drawn"), ISPRS)
    (before, after) = (np.asarray(each.images["a"].read()[1]) for each in (LabelledSet.read(data / "toy", ISPRS), made))
    expected = before.copy()
    expected[6:, 10:][before[6:, 10:] == 10] = 4  # not where building is ruled out, nor where it was erased
    np.testing.assert_array_equal(after, expected)
    assert {code: list(np.flatnonzero(made.allowed[code])) for code in (2, 4, 10)} == {2: [1], 4: [3], 10: [0, 2, 3, 4, 5]}
    assert made.split == {"train": ("a",), "val": ()}


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "labels").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_polygons_are_of_known_classes_and_lie_in_their_images(path: Path) -> None:
    table = yaml.safe_load(path.read_text())
    assert {"title", "licence", "provenance", "size", "images"} == table.keys()
    for shapes in table["images"].values():
        assert {name for name, _ in shapes} <= {"ignore", *(c.name for c in ISPRS.classes)}
        assert all(len(corners) >= 3 for _, corners in shapes)
        assert all(0 <= value <= table["size"] for _, corners in shapes for corner in corners for value in corner)


def test_many_gpus_refuses_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    make_scene(tmp_path / "scene.tif", np.zeros((3, 5, 6), np.uint8))
    with pytest.raises(geoseg.GeosegError, match="cluster cuda: this machine shows no GPU"):
        _main("many_gpus.py")(tmp_path, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.cluster
def test_many_gpus_can_be_tried_out_on_the_cpu(tmp_path: Path) -> None:
    scenes, model = tmp_path / "scenes", model_folder(tmp_path / "model")
    scenes.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 50, 60), dtype=np.uint8)
    for name in ("a", "b"):
        make_scene(scenes / f"{name}.tif", pixels, transform=rasterio.Affine(1, 0, 354000, 0, -1, 3057000))
    line = [sys.executable, str(ROOT / "pipelines" / "many_gpus.py"), str(scenes), str(tmp_path / "out"), str(model), "local:2"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("2 scenes, 0.0 megapixels; 2 of them now, in ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")
def test_notebooks_run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit notebooks without outputs"
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(ROOT)}}).execute()
