"""Legends: unique, fitting, readable."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.datasets.labelled import allowed_by
from geoseg.errors import OptionsError
from geoseg.legend import ISPRS, Legend

LEGENDS = sorted((Path(__file__).parents[1] / "configs" / "legends").glob("*.yaml"))


def test_isprs_has_the_contests_classes_and_colours() -> None:
    assert [(c.name, c.rgb) for c in ISPRS.classes] == [
        ("impervious", (255, 255, 255)),
        ("building", (0, 0, 255)),
        ("low_vegetation", (0, 255, 255)),
        ("tree", (0, 255, 0)),
        ("car", (255, 255, 0)),
        ("clutter", (255, 0, 0)),
    ]
    assert ISPRS[2].title == "Building"


@pytest.mark.parametrize("path", LEGENDS, ids=lambda path: path.stem)
def test_shipped_legends_can_be_read(path: Path) -> None:
    legend = Legend.from_yaml(path)
    assert legend.name == path.stem
    if path.stem == "isprs":
        assert legend == ISPRS


def test_labels_may_call_a_class_by_what_it_includes() -> None:
    buildings = Legend.from_yaml(next(path for path in LEGENDS if path.stem == "buildings"))
    allowed = allowed_by(
        {1: {"allowed": ["building"]}, 2: {"allowed": ["Tree", "CAR"]}, 3: {"allowed": ["tree", "building"]}}, buildings, ""
    )
    assert allowed[1:4].tolist() == [[False, True], [True, False], [True, True]]
    assert Legend.model_validate_json(buildings.model_dump_json()) == buildings
    assert "includes" not in ISPRS.model_dump_json()  # cards of before say the same still


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nclasses: [{id: 0, name: a, title: A, colour: '#000000'}]", r"classes\.0\.id"),
        ("name: x\nclasses: [{id: 1, name: a b, title: A, colour: '#000000'}]", "must match"),
        ("name: x\nclasses: [{id: 1, name: layer_styles, title: A, colour: '#000000'}]", "reserved"),
        ("name: x\nclasses: [{id: 1, name: a, title: A, colour: red}]", "#rrggbb"),
        (
            "name: x\nclasses: [{id: 1, name: a, title: A, colour: '#000000'}, {id: 1, name: b, title: B, colour: '#000001'}]",
            "id 1 occurs twice",
        ),
        (
            "name: x\nclasses: [{id: 1, name: a, title: A, colour: '#000000', includes: [B]}, "
            "{id: 2, name: b, title: B, colour: '#000001'}]",
            "includes 'B', and so does another",
        ),
        ("name: x\nclasses: []", "classes"),
        ("a: [", "not a readable YAML file"),
    ],
)
def test_what_is_no_legend_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "legend.yaml"
    path.write_text(text)
    with pytest.raises(OptionsError, match=message) as caught:
        Legend.from_yaml(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="not a readable YAML file"):
        Legend.from_yaml(tmp_path / "none.yaml")


@given(st.lists(st.text(max_size=40), min_size=1, max_size=60))
def test_any_titles_make_a_legend(titles: list[str]) -> None:
    legend = Legend.from_titles("any", titles)
    assert legend.ids == tuple(range(1, len(titles) + 1))
    assert [c.title for c in legend.classes] == [title or f"Class {number}" for number, title in enumerate(titles, 1)]
    assert all(one.colour != other.colour for one, other in itertools.pairwise(legend.classes))


def test_titles_become_the_names_that_come_close() -> None:
    titles = ["Low vegetation", "low-vegetation", "Straße", "2 lanes", "segments", "道"]
    names = ["low_vegetation", "class_low_vegetation", "strae", "class_2_lanes", "class_segments", "class_6"]
    assert [c.name for c in Legend.from_titles("any", titles).classes] == names
