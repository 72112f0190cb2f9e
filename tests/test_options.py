from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from geoseg.errors import OptionsError
from geoseg.options import nearest, parse, read_table


class _Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    weight: float = 1.0


class _Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sources: tuple[_Inner, ...]
    chips: _Inner | None = None
    seed: int = 0


def test_a_good_table_becomes_a_model():
    assert parse(_Outer, {"sources": [{"weight": 2}], "seed": 3}, "x.yaml") == _Outer(sources=(_Inner(weight=2),), seed=3)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"sources": [], "sead": 1}, ["x.yaml", "'sead'", "'seed'"]),
        ({"sources": [{"wieght": 1}]}, ["'sources.0.wieght'", "'weight'"]),
        ({"sources": [], "chips": {"zzz": 1}}, ["'chips.zzz'", "expected one of weight"]),
        ({"sources": [], "seed": "many"}, ["x.yaml: seed", "integer"]),
        ({}, ["sources", "required"]),
    ],
)
def test_a_bad_table_is_refused_with_the_nearest_key(table, words):
    with pytest.raises(OptionsError) as caught:
        parse(_Outer, table, "x.yaml")
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "a: [1", "", "\x00"])
def test_a_file_without_a_table_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(OptionsError, match=r"x\.yaml"):
        read_table(path)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(OptionsError, match=r"none\.yaml"):
        read_table(tmp_path / "none.yaml")


def test_nearest():
    assert nearest("unett", ["unet", "fpn"]) == "did you mean 'unet'?"
    assert nearest("zzz", ["unet", "fpn"]) == "expected one of fpn, unet"


def test_a_table_may_stand_on_another(tmp_path: Path):
    (tmp_path / "below").mkdir()
    (tmp_path / "a.yaml").write_text("one: 1\ntwo: {x: 1, y: {p: 1, q: 2}}\nthree: [1, 2]\nfour: {z: 1}\n")
    (tmp_path / "below" / "b.yaml").write_text("base: ../a.yaml\ntwo: {y: {p: 3}, w: 4}\nthree: [5]\nfour: 6\n")
    (tmp_path / "below" / "c.yaml").write_text("base: b.yaml\none: 7\n")
    assert read_table(tmp_path / "below" / "c.yaml") == {"one": 7, "two": {"x": 1, "y": {"p": 3}, "w": 4}, "three": [5], "four": 6}
    (tmp_path / "odd.yaml").write_text("base: none.yaml\n")
    with pytest.raises(OptionsError, match=r"none\.yaml: not a readable YAML file"):
        read_table(tmp_path / "odd.yaml")
    (tmp_path / "one.yaml").write_text("base: below/other.yaml\n")
    (tmp_path / "below" / "other.yaml").write_text("base: ../one.yaml\n")
    with pytest.raises(OptionsError, match="stands on itself"):
        read_table(tmp_path / "one.yaml")
