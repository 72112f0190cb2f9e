from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from geoseg.datasets import LabelledSet
from geoseg.errors import OptionsError, ReadError
from geoseg.legend import ISPRS

CORPUS = Path(__file__).parents[2] / "shared" / "data" / "train"
TABLE = {
    "title": "Two small pictures",
    "licence": {"imagery": "CC BY 4.0", "labels": "CC0\n1.0"},
    "attribution": "nobody",
    "gsd_m": {"a_1": 0.1, "b_1": 0.3},
    "codes": {
        0: {"name": "ignore", "allowed": []},
        2: {"name": "building", "allowed": ["building"]},
        17: {"name": "ground", "allowed": ["impervious surface", "low_vegetation"]},
    },
    "split": {"train": ["a_1"], "val": ["b_1"]},
}


def _write(root: Path, table: dict) -> Path:
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "set.yaml").write_text(yaml.safe_dump(table))
    for name in ("a_1", "b_1"):
        Image.fromarray(np.full((4, 6, 3), 7, np.uint8)).save(root / "images" / f"{name}.jpg")
        Image.fromarray(np.full((4, 6), 17, np.uint8)).save(root / "labels" / f"{name}.png")
    return root


def test_a_set_is_described_and_read(tmp_path: Path):
    found = LabelledSet.read(_write(tmp_path / "small", TABLE), ISPRS)
    assert (found.name, found.title, found.licence) == ("small", "Two small pictures", "imagery: CC BY 4.0; labels: CC0 1.0")
    assert np.flatnonzero(found.allowed.any(1)).tolist() == [2, 17]
    assert found.allowed[17].tolist() == [True, False, True, False, False, False]
    (image,) = found.select("val")
    assert image.gsd_m == 0.3
    pixels, labels = image.read()
    assert (pixels.mode, pixels.size, labels.mode, labels.size) == ("RGB", (6, 4), "L", (6, 4))
    assert np.unique(np.asarray(labels)).tolist() == [17]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"title": None}, OptionsError, "'title' is missing"),
        ({"codes": {2: {"allowed": ["biulding"]}}}, OptionsError, "did you mean 'building'"),
        ({"split": {"train": ["c_1"]}}, ReadError, "'c_1' of the split has no file"),
        ({"gsd_m": {"a_1": 0.1}}, OptionsError, "gsd_m of 'b_1' is None"),
    ],
)
def test_odd_descriptions_are_refused(tmp_path: Path, change, error, words):
    table = {key: value for key, value in (TABLE | change).items() if value is not None}
    with pytest.raises(error, match=words):
        LabelledSet.read(_write(tmp_path, table), ISPRS)


def test_odd_selections_are_refused(tmp_path: Path):
    found = LabelledSet.read(_write(tmp_path, TABLE), ISPRS)
    assert [image.name for image in found.select("train", ["a_*"])] == ["a_1"]
    with pytest.raises(OptionsError, match="did you mean 'train'"):
        found.select("trian")
    with pytest.raises(OptionsError, match="no image of part 'train'"):
        found.select("train", ["a_*"], ["*_1"])


def test_odd_files_are_refused(tmp_path: Path):
    found = LabelledSet.read(_write(tmp_path, TABLE), ISPRS)
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "labels" / "a_1.png")
    with pytest.raises(ReadError, match="must be equal"):
        found.select("train")[0].read()
    (tmp_path / "images" / "b_1.jpg").write_bytes(b"no picture")
    with pytest.raises(ReadError, match=r"b_1\.jpg: cannot be decoded"):
        found.select("val")[0].read()


@pytest.mark.skipif(not CORPUS.exists(), reason="the labelled sets are not here")
@pytest.mark.parametrize("name", ["hand", "oam_buildings", "cars"])
def test_real_sets(name: str):
    found = LabelledSet.read(CORPUS / name, ISPRS)
    assert not {image.name for image in found.select("train")} & {image.name for image in found.select("val")}
    pixels, labels = found.select("val")[0].read()
    assert pixels.size == labels.size
    assert found.allowed[2].tolist() == [False, name != "cars", False, False, False, False]
