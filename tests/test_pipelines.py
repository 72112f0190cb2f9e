"""Scripts and notebooks run as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import rasterio
from nbclient import NotebookClient

from tests.conftest import make_scene
from tests.oracles import model_folder

ROOT = Path(__file__).parents[1]
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")
def test_notebooks_run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit notebooks without outputs"
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(ROOT)}}).execute()
