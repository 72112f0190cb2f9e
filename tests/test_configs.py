"""The legends that ship as YAML."""

from __future__ import annotations

from pathlib import Path

import pytest

from geoseg.legend import ISPRS, Legend

LEGENDS = Path(__file__).parents[1] / "configs" / "legends"


def test_the_isprs_file_says_what_the_code_says() -> None:
    assert Legend.from_yaml(LEGENDS / "isprs.yaml") == ISPRS


@pytest.mark.parametrize("path", sorted(LEGENDS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_legend_can_be_read_and_is_named_as_its_file(path: Path) -> None:
    assert Legend.from_yaml(path).name == path.stem
