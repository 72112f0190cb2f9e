"""What a training recipe says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from geoseg.card import ModelCard, Scaling
from geoseg.chips import ChipOptions, Source
from geoseg.errors import OptionsError
from geoseg.legend import ISPRS, Legend
from geoseg.losses import Term
from geoseg.networks import maskrcnn
from geoseg.options import parse, read_table
from geoseg.segmenter import fastest
from geoseg.training.begin import find_base

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
"""Of Lightning's trainer."""
Decay = Literal["cosine", "poly", "plateau", "constant"]
"""How the learning rate falls; see :func:`geoseg.training.loop.share_of_rate`."""
Config = str | Path | Mapping[str, Any]
"""A YAML recipe, or its table."""

_TUNED: dict[str, dict[str, Any]] = {
    "chips": {"size": 256, "batch": 8, "scale": [0.8, 1.25], "brightness": 0.2, "colour": 0.05, "gamma": 0.2, "contrast": 0.2},
    "schedule": {"max_steps": 300, "validate_every": 50, "learning_rate": 0.0005, "average": 0.98},
}
"""What a recipe with ``init`` need not say."""


class Table(BaseModel):
    """A table of a recipe: no key is unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelOptions(Table):
    """The facts of the card that are known before training; see :class:`geoseg.card.ModelCard`.

    The legend is ``isprs``, a YAML file, or a table of its own. With ``init``, only ``name`` must be said.
    """

    name: str
    version: str
    description: str
    architecture: str
    options: dict[str, Any] = {}
    bands: tuple[str, ...] = ("red", "green", "blue")
    scaling: Scaling
    resolution_m: float = Field(gt=0)
    tile: int
    overlap: int
    legend: str | Legend = ISPRS.name
    license: str

    def classes(self) -> Legend:
        """The legend itself.

        Raises:
            OptionsError: if it is a file that cannot be read.
        """
        if isinstance(self.legend, Legend):
            return self.legend
        return ISPRS if self.legend == ISPRS.name else Legend.from_yaml(self.legend)


class ScheduleOptions(Table):
    """How long and how fast to learn.

    Attributes:
        max_steps: changes of the weights.
        max_minutes: of wall clock, over all resumed runs; the learning rate falls by whichever limit is nearer. What a clock ends is
            not the same twice; what steps end is.
        validate_every: steps between two validations, each of which also writes a checkpoint.
        learning_rate: at its highest.
        warmup: share of the run in which the learning rate rises.
        decay: how it falls afterwards.
        optimizer: ``adamw``, or ``sgd`` with a momentum of 0.9.
        weight_decay: of convolutions; biases and norms have none.
        accumulate: batches a step; their losses are averaged.
        average: decay of the moving average of the weights, which is what is validated and kept.
        patience: validations without a better figure (the mean IoU, for instances the average precision) after which the run ends.
        keep: whether the weights of the ``last`` validation become the model, or those of the ``best``.
    """

    max_steps: int = Field(ge=1)
    max_minutes: float | None = Field(default=None, gt=0)
    validate_every: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    warmup: float = Field(default=0.03, ge=0, lt=1)
    decay: Decay = "cosine"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = Field(default=0.01, ge=0)
    accumulate: int = Field(default=1, ge=1)
    average: float = Field(default=0.998, ge=0, lt=1)
    patience: int | None = Field(default=None, ge=1)
    keep: Literal["last", "best"] = "last"


class LossOptions(Table):
    """What is minimised; see :func:`geoseg.losses.balanced_weights` and ``partial_cross_entropy``.

    Attributes:
        balance: how far rare codes are raised.
        ambiguous: weight of codes that allow several classes.
        push: whether ambiguous codes only push away the classes that they exclude, and do not pull at those that they allow. For the
            first steps with few labels of a single class; a network that knows its classes learns more without.
        auxiliary: weight of the loss of the auxiliary head, where the architecture has one (0.4: Zhao et al. 2017, section
            5.2); with 0 there is none. The head is trained and left out of the model folder.
        terms: weight of each loss of the sum; see :class:`geoseg.losses.SummedLoss`.
    """

    balance: float = Field(default=0.5, ge=0, le=1)
    ambiguous: float = Field(default=0.5, ge=0)
    push: bool = False
    terms: dict[Term, Annotated[float, Field(gt=0)]] = Field(default={"partial": 1.0}, min_length=1)
    auxiliary: float = Field(default=0.4, ge=0)


class Held(Source):
    """Validation images that share one line of scores; of the part ``val`` unless it says another."""

    name: str
    part: str = "val"


class Recipe(Table):
    """What every recipe has.

    Attributes:
        data: folder of what is learnt from; a relative path starts at the working directory.
        init: name or folder of a model to begin with (fine-tuning). What of ``model``, and of ``chips`` and ``schedule``, is not said
            is that model's, or suits a short run.
        model: facts of the card.
        schedule: how long to learn.
        encoder_weights: file or name of pretrained weights to begin with; see :func:`geoseg.networks.weights.load_encoder`.
        seed: of weights and chips.
        workers: processes that cut chips.
        threads: of the network on a CPU; null leaves torch's choice.
        devices: GPUs, or processes on a CPU, that share each step; each of them learns from batches of its own.
        precision: of Lightning's trainer, e.g. ``bf16-mixed`` or ``32-true``; ``auto`` is the faster of these two on the hardware.
    """

    data: Path
    init: str | None = None
    model: ModelOptions
    schedule: ScheduleOptions
    encoder_weights: str | None = None
    seed: int = 0
    workers: int = Field(default=1, ge=0)
    threads: int | None = Field(default=None, ge=1)
    devices: int = Field(default=1, ge=1)
    precision: Literal["auto"] | Precision = "32-true"

    @property
    def multiplied_in(self) -> Precision:
        """The precision itself, also where the recipe leaves it to the hardware."""
        if self.precision != "auto":
            return self.precision
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return "bf16-mixed" if fastest(device) == "bf16" else "32-true"

    @model_validator(mode="after")
    def _begins_once(self) -> Recipe:
        if self.init is not None and self.encoder_weights is not None:
            raise ValueError("init and encoder_weights are both given; a model to begin with brings its own encoder, leave one out")
        return self


R = TypeVar("R", bound=Recipe)


class TrainOptions(Recipe):
    """One training recipe.

    Attributes:
        sources: where chips come from.
        chips: how they are cut.
        loss: how codes are weighed.
        validation: groups of held-out images; the first is watched during training, all are scored at the end.
        folds: parts into which the images of the sources are dealt, by their names and the seed.
        fold: the one, from 1, that is held out this time; it is watched and scored before the groups of ``validation``.
    """

    sources: tuple[Source, ...] = Field(min_length=1)
    chips: ChipOptions
    loss: LossOptions = LossOptions()
    validation: tuple[Held, ...] = ()
    folds: int | None = Field(default=None, ge=2)
    fold: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _holds_something_out(self) -> TrainOptions:
        if self.folds is None and not self.validation:
            raise ValueError("validation is empty; name held-out images, or let folds hold some of the sources' images out")
        if self.folds is not None and (self.fold is None or self.fold > self.folds):
            raise ValueError(f"folds is {self.folds}, fold is {self.fold}; say with --fold which of 1 to {self.folds} is held out")
        if self.fold is not None and self.folds is None:
            raise ValueError(f"fold is {self.fold}, but there are no folds; say how many with the key folds")
        if "auxiliary" in self.model.options:
            raise ValueError("model.options.auxiliary is decided by training; set loss.auxiliary, 0 for no auxiliary head")
        return self


def is_of_instances(config: Config, init: str | Path | None = None) -> bool:
    """Whether a recipe is for a network that finds instances, and so an `InstanceOptions`.

    Raises:
        OptionsError: if it is not readable.
        CardError: if there is no such model to begin with.
    """
    model = _table(config, {"init": init}).get("model")
    return isinstance(model, Mapping) and str(model.get("architecture", "")) in maskrcnn.names()


def read_options(config: Config, data: str | Path | None = None, **given: Any) -> TrainOptions:
    """Read a recipe of a network with logits; see `read_recipe`."""
    return read_recipe(TrainOptions, config, data, **given)


def read_recipe(kind: type[R], config: Config, data: str | Path | None = None, **given: Any) -> R:
    """Read a recipe; what is given beside it (``encoder_weights``, ``init``, ``fold``; None for nothing) stands before what is in it.

    Raises:
        OptionsError: if a key is unknown, missing or of the wrong type, or the data folder is not there.
        CardError: if there is no such model to begin with.
    """
    where = "recipe" if isinstance(config, Mapping) else str(config)
    options = parse(kind, _table(config, {"data": data, **given}), where)
    if not options.data.is_dir():
        raise OptionsError(f"{where}: data folder {options.data} is not there; name the folder that holds the scenes with --data")
    return options


def _table(config: Config, given: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a recipe with what is given beside it and, if it begins with a model, what that says."""
    table = dict(config) if isinstance(config, Mapping) else read_table(config)
    table |= {key: str(value) if isinstance(value, Path) else value for key, value in given.items() if value is not None}
    return _filled(table, find_base(str(table["init"]))[0]) if table.get("init") else table


def _filled(table: dict[str, Any], base: ModelCard) -> dict[str, Any]:
    said = table.get("model", {})
    if not isinstance(said, Mapping):
        return table
    facts = base.model_dump(include={"architecture", "options", "bands", "resolution_m", "tile", "overlap", "legend", "license"})
    facts |= {"version": "0.1", "description": f"{base.name} {base.version}, fine-tuned."}
    places = [base.bands.index(band) for band in said.get("bands", base.bands) if band in base.bands]
    if len(places) == len(said.get("bands", base.bands)):
        picked = {name: [getattr(base.scaling, name)[place] for place in places] for name in ("mean", "std")}
        facts["scaling"] = base.scaling.model_dump() | picked
    short = {} if base.architecture in maskrcnn.names() else _TUNED
    tuned = {key: short[key] | dict(table.get(key, {})) for key in short if isinstance(table.get(key, {}), Mapping)}
    return table | tuned | {"model": {**facts, **said}}
