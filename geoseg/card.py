"""The facts of a trained model, beside its weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from geoseg.errors import CardError
from geoseg.legend import Legend

CARD_NAME = "model.json"
WEIGHTS_NAME = "model.safetensors"


class Scaling(BaseModel):
    """How native pixel values become the numbers the network was trained on.

    ``x = ((pixel - low) / (high - low) clipped to 0..1 - mean) / std``, per band.

    Attributes:
        dtype: data type the range below is meant for, e.g. ``uint8``. A scene of another type is stretched linearly
            between its own percentiles, once per scene.
        low: value that becomes 0.
        high: value that becomes 1.
        percentiles: the two percentiles of the stretch for other types.
        mean: per band, of values in 0..1.
        std: per band, of values in 0..1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str
    low: float
    high: float
    percentiles: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @model_validator(mode="after")
    def _is_usable(self) -> Scaling:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(f"percentiles {self.percentiles} must rise within 0..100")
        if len(self.mean) != len(self.std) or min(self.std, default=0.0) <= 0:
            raise ValueError("mean and std need one value a band, std above 0")
        return self


class ModelCard(BaseModel):
    """Everything ``geoseg predict`` must know of a model; complete or refused, no fact has a default.

    Stored as JSON (``model.json``) beside ``model.safetensors``. Fields that STAC MLM 1.5 also has carry its names.

    Attributes:
        name: identifier.
        version: of the model, apart from geoseg's own.
        description: one or two honest sentences.
        architecture: a name that ``geoseg.networks.build`` knows; ``onnx`` for an ONNX file that says no more.
        options: keyword arguments of that network.
        parameters: number of trainable numbers.
        bands: names of the bands, in the network's order (``red``, ``green``, ``blue``, ``nir``, ...).
        scaling: native pixels to network input.
        resolution_m: pixel size in metres on the ground that the network expects.
        tile: height and width of a predicted tile in pixels, a multiple of ``stride``.
        overlap: pixels that neighbouring tiles share, a multiple of ``stride``.
        stride: total downsampling of the network; tiles start on multiples of it.
        legend: the classes, in the order of the network's channels.
        license: SPDX identifier of the weights' licence.
        training_data: one line for each set: what, licence, attribution.
        scores: figures and how they were measured.
        sha256: of the weights file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: str = Field(alias="mlm:name", pattern=r"^[a-z0-9][a-z0-9._-]*$")
    version: str
    description: str
    architecture: str = Field(alias="mlm:architecture")
    options: dict[str, Any]
    parameters: int = Field(alias="mlm:total_parameters", ge=1)
    bands: tuple[str, ...] = Field(min_length=1)
    scaling: Scaling
    resolution_m: float = Field(gt=0)
    tile: int = Field(ge=32)
    overlap: int = Field(ge=0)
    stride: int = Field(ge=1)
    legend: Legend
    license: str
    training_data: tuple[str, ...]
    scores: dict[str, Any]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _fits_together(self) -> ModelCard:
        if len(self.bands) != len(self.scaling.mean):
            raise ValueError(f"{len(self.bands)} bands but scaling for {len(self.scaling.mean)}")
        if self.tile % self.stride or self.overlap % self.stride or self.overlap >= self.tile:
            raise ValueError(f"tile {self.tile} and overlap {self.overlap} must be multiples of stride {self.stride}, overlap below tile")
        return self

    @property
    def hash(self) -> str:
        """Sha256 of the card, the weights' hash included: one name for model and facts."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """The card as JSON, keys in a fixed order."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, model: str | Path) -> tuple[ModelCard, Path]:
        """Read the card of a model folder (or of its ``model.json``) and the path of its weights.

        Raises:
            CardError: if the folder or a file is missing, or a fact is missing, unknown or of the wrong type.
        """
        path = Path(model)
        path = path / CARD_NAME if path.is_dir() else path
        try:
            card = cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise CardError(f"{model}: no model here ({error.strerror}); expected a folder with {CARD_NAME} and {WEIGHTS_NAME}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "card"
            raise CardError(f"{path}: not a model card: {where}: {first['msg']}") from error
        weights = path.with_name(WEIGHTS_NAME)
        if not weights.is_file():
            raise CardError(f"{path}: the weights {WEIGHTS_NAME} are missing beside the card")
        return card, weights

    def check(self, weights: Path) -> None:
        """Compare the weights file with the hash in the card.

        Raises:
            CardError: if they differ.
        """
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.sha256:
            raise CardError(f"{weights}: sha256 is {digest[:12]}…, the card says {self.sha256[:12]}…; fetch the model again")
