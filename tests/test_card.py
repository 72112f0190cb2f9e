"""A card is complete or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from geoseg.card import ModelCard
from geoseg.errors import CardError
from geoseg.models import locate
from tests.oracles import card, model_folder


def test_a_card_survives_writing_and_reading(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    read, weights = ModelCard.read(folder)
    read.check(weights)
    assert ModelCard.model_validate_json(read.to_json()) == read
    assert ModelCard.read(folder / "model.json")[0].hash == read.hash


def test_the_hash_names_every_fact() -> None:
    assert card().hash != card(resolution_m=2.0).hash
    assert card().hash == card().hash


def test_fields_that_stac_mlm_has_carry_its_names() -> None:
    facts = json.loads(card().to_json())
    assert {"mlm:name", "mlm:architecture", "mlm:total_parameters"} <= facts.keys()


@pytest.mark.parametrize("fact", sorted(json.loads(card().to_json())))
def test_no_fact_has_a_default(tmp_path: Path, fact: str) -> None:
    folder = model_folder(tmp_path / "m")
    facts = json.loads((folder / "model.json").read_text())
    del facts[fact]
    (folder / "model.json").write_text(json.dumps(facts))
    with pytest.raises(CardError, match=f"{fact}: Field required"):
        ModelCard.read(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"overlap": 60}, "must be multiples of stride 8"),
        ({"bands": ["red"]}, "1 bands but scaling for 3"),
        ({"sha256": "abc"}, "sha256"),
    ],
)
def test_facts_that_do_not_fit_together_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    folder = model_folder(tmp_path / "m")
    facts = json.loads((folder / "model.json").read_text()) | change
    (folder / "model.json").write_text(json.dumps(facts))
    with pytest.raises(CardError, match=message):
        ModelCard.read(folder)


def test_other_weights_than_the_cards_are_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    read, path = ModelCard.read(folder)
    with pytest.raises(CardError, match=r"sha256 is .* the card says"):
        read.check(path)


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"no such folder, and no model of that name; known are .*default"):
        locate("no-such-model")
    with pytest.raises(CardError, match="no model here"):
        ModelCard.read(tmp_path)
    model_folder(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(CardError, match=r"model\.safetensors are missing"):
        ModelCard.read(tmp_path / "m")


def test_models_of_the_users_folder_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "mine")
    monkeypatch.setenv("GEOSEG_MODELS", str(tmp_path))
    assert locate("mine") == folder
