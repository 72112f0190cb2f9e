"""Train a network on labelled sets, and write the model folder that ``predict`` reads."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from geoseg.card import CARD_NAME, WEIGHTS_NAME, ModelCard, Scaling
from geoseg.chips import ChipOptions, Chips, Pool, Source, in_units, native_range, ranged, resized, standardised
from geoseg.confusion import Confusion
from geoseg.datasets import LabelledImage, LabelledScene, LabelledSet
from geoseg.errors import OptionsError, ResumeError
from geoseg.legend import ISPRS, Legend
from geoseg.losses import PartialLabelLoss, SummedLoss, Term, balanced_weights
from geoseg.networks import build, find, maskrcnn
from geoseg.networks.weights import load_encoder
from geoseg.options import parse, read_table
from geoseg.report import write_chips
from geoseg.window import Window

_log = logging.getLogger(__name__)
_CODES = 256
_WORK = "training"
_LAST = "last"
_CHIPS = "chips.png"

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
"""Of Lightning's trainer."""


class Table(BaseModel):
    """A table of a recipe: no key is unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelOptions(Table):
    """The facts of the card that are known before training; see :class:`geoseg.card.ModelCard`."""

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
    legend: str = "isprs"
    license: str


class ScheduleOptions(Table):
    """How long and how fast to learn.

    Attributes:
        max_steps: batches.
        max_minutes: of wall clock, over all resumed runs; the learning rate falls by whichever limit is nearer.
        validate_every: batches between two validations, each of which also writes a checkpoint.
        learning_rate: at its highest.
        warmup: share of the run in which the learning rate rises.
        weight_decay: of convolutions; biases and norms have none.
        average: decay of the moving average of the weights, which is what is validated and kept.
    """

    max_steps: int = Field(ge=1)
    max_minutes: float | None = Field(default=None, gt=0)
    validate_every: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    warmup: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    average: float = Field(default=0.998, ge=0, lt=1)


class LossOptions(Table):
    """What is minimised; see :func:`geoseg.losses.balanced_weights` and ``partial_cross_entropy``.

    Attributes:
        balance: how far rare codes are raised.
        ambiguous: weight of codes that allow several classes.
        push: whether ambiguous codes push away the classes that they exclude.
        auxiliary: weight of the loss of the auxiliary head, where the architecture has one (0.4: Zhao et al. 2017, section
            5.2); with 0 there is none. The head is trained and left out of the model folder.
        terms: weight of each loss of the sum; see :class:`geoseg.losses.SummedLoss`.
    """

    balance: float = Field(default=0.5, ge=0, le=1)
    ambiguous: float = Field(default=0.5, ge=0)
    push: bool = True
    terms: dict[Term, Annotated[float, Field(gt=0)]] = Field(default={"partial": 1.0}, min_length=1)
    auxiliary: float = Field(default=0.4, ge=0)


class Held(Source):
    """Validation images that share one line of scores; of the part ``val`` unless it says another."""

    name: str
    part: str = "val"


class Recipe(Table):
    """What every recipe has.

    Attributes:
        data: folder of what is learnt from.
    """

    data: Path


R = TypeVar("R", bound=Recipe)


class TrainOptions(Recipe):
    """One training recipe.

    Attributes:
        data: folder of the sets; a relative path starts at the working directory.
        model: facts of the card.
        sources: where chips come from.
        chips: how they are cut.
        loss: how codes are weighed.
        schedule: how long to learn.
        validation: groups of held-out images; the first is watched during training, all are scored at the end.
        encoder_weights: file or name of pretrained weights to begin with; see :func:`geoseg.networks.weights.load_encoder`.
        seed: of weights and chips.
        workers: processes that cut chips.
        threads: of the network on a CPU; null leaves torch's choice.
        precision: of Lightning's trainer, e.g. ``bf16-mixed`` or ``32-true``.
    """

    model: ModelOptions
    sources: tuple[Source, ...] = Field(min_length=1)
    chips: ChipOptions
    loss: LossOptions = LossOptions()
    schedule: ScheduleOptions
    validation: tuple[Held, ...] = Field(min_length=1)
    encoder_weights: str | None = None
    seed: int = 0
    workers: int = Field(default=1, ge=0)
    threads: int | None = Field(default=None, ge=1)
    precision: Precision = "32-true"


class HeldOut(Dataset[tuple[Tensor, Tensor]]):
    """Validation images at the card's resolution: whole ones, one an item, and scenes in windows of the card's tile.

    Args:
        images: to read.
        model: scaling, resolution and tile.
        stride: height and width are filled up to multiples of it, with the mean colour and no label.
    """

    def __init__(self, images: tuple[LabelledImage | LabelledScene, ...], model: ModelOptions, stride: int) -> None:
        self.images, self.model, self.stride = images, model, stride
        self.items: list[LabelledImage | tuple[LabelledScene, Window]] = []
        for image in images:
            if isinstance(image, LabelledImage):
                self.items.append(image)
            else:
                windows = Window.of(image.reduced(model.resolution_m)).split(model.tile, model.tile)
                self.items += [(image, window) for window in windows]
        self.ranges = {image.name: native_range(image, model.scaling) for image in images if isinstance(image, LabelledScene)}

    def __len__(self) -> int:
        """Number of items."""
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Scaled pixels (B, H, W) float32 and label codes (H, W) uint8.

        Raises:
            ReadError: if a file cannot be decoded.
        """
        item, scaling = self.items[index], self.model.scaling
        if isinstance(item, LabelledImage):
            pixels, labels = (np.asarray(picture) for picture in resized(*item.read(), factor=item.gsd_m / self.model.resolution_m))
            values = standardised(ranged(pixels.transpose(2, 0, 1), scaling), scaling)
        else:
            image, window = item
            native, valid, labels = image.read(window, image.reduced(self.model.resolution_m))
            native = in_units(np.where(valid, native, 0), *self.ranges[image.name], scaling)
            values = standardised(ranged(native, scaling), scaling) * valid
        rim = [(0, -length % self.stride) for length in labels.shape]
        return torch.from_numpy(np.pad(values, [(0, 0), *rim])), torch.from_numpy(np.pad(labels, rim))


class Data(pl.LightningDataModule):
    """Chips to learn from, held-out images to watch.

    Args:
        options: the recipe.
        legend: the classes.
        stride: of the network.
    """

    def __init__(self, options: TrainOptions, legend: Legend, stride: int) -> None:
        super().__init__()
        self.options, self.legend, self.stride = options, legend, stride
        rng = np.random.default_rng(options.seed)
        finest_m = options.model.resolution_m * options.chips.scale[0]
        self.sets: dict[Any, LabelledSet] = {}
        self.groups: dict[Held, HeldOut] = {}
        for source in (*options.sources, *options.validation):
            if source.data not in self.sets:
                self.sets[source.data] = source.read(options.data, legend, options.model.bands)
        self.allowed = _allowed(tuple(self.sets.values()))
        scaling = options.model.scaling
        self.pools = tuple(Pool.load(self.sets[source.data], source, finest_m, scaling, rng) for source in options.sources)

    def chips(self, first: int, count: int, seed: int | None = None) -> Chips:
        """Batches ``first`` to ``first + count``."""
        options = self.options
        seed = options.seed if seed is None else seed
        return Chips(self.pools, options.chips, options.model.scaling, options.model.resolution_m, seed=seed, first=first, count=count)

    def held_out(self, held: Held) -> HeldOut:
        """The images of one validation group, looked at once."""
        if held not in self.groups:
            images = self.sets[held.data].select(held.part, held.keep, held.drop)
            self.groups[held] = HeldOut(images, self.options.model, self.stride)
        return self.groups[held]

    def shares(self, batches: int = 24) -> Tensor:
        """(C,) share of each code among labelled chip pixels, measured on a few batches.

        Raises:
            OptionsError: if nothing is labelled.
        """
        chips = self.chips(0, batches, seed=self.options.seed + 1)
        counts = sum((torch.bincount(chips[i][1].flatten().long(), minlength=_CODES) for i in range(batches)), torch.zeros(_CODES)).double()
        counts[torch.as_tensor(~self.allowed.any(1))] = 0
        if not counts.any():
            sources = ", ".join(source.set for source in self.options.sources)
            raise OptionsError(
                f"{sources}: no pixel of {batches} batches has a label that allows a class; are images and labels of one place?"
            )
        return counts / counts.sum()

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """The batches up to the next validation, going on where the trainer is."""
        done = self.trainer.global_step if self.trainer else 0
        chips = self.chips(done, self.options.schedule.validate_every)
        context = "fork" if self.options.workers else None
        return DataLoader(chips, batch_size=None, num_workers=self.options.workers, multiprocessing_context=context)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """The images of the first group, one at a time."""
        return DataLoader(self.held_out(self.options.validation[0]), batch_size=1)


class Learning(pl.LightningModule):
    """A network, how long and how fast it learns, and how a run is taken up.

    Args:
        network: that learns.
        options: how long and how fast.
    """

    def __init__(self, network: torch.nn.Module, options: ScheduleOptions) -> None:
        super().__init__()
        self.network, self.schedule = network, options
        self.spent_s = 0.0
        self.since: float | None = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, without decay of vectors (biases, norms)."""
        parameters = list(self.network.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.schedule.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.schedule.learning_rate)

    def progress(self) -> float:
        """Share of the run that is over, 0..1: of the steps or of the minutes, whichever is more."""
        steps = self.global_step / self.schedule.max_steps
        minutes = self.elapsed_s() / 60 / self.schedule.max_minutes if self.schedule.max_minutes else 0.0
        return min(1.0, max(steps, minutes))

    def elapsed_s(self) -> float:
        """Seconds of training, over all resumed runs."""
        return self.spent_s + (time.monotonic() - self.since if self.since is not None else 0.0)

    def on_fit_start(self) -> None:
        """Start the clock."""
        self.since = time.monotonic()

    def on_train_batch_start(self, *_: Any) -> None:
        """Set the learning rate of this step."""
        rate = self.schedule.learning_rate * warmed_cosine(self.progress(), self.schedule.warmup)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop when the time is over."""
        if self.progress() >= 1:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the time spent."""
        checkpoint["geoseg_spent_s"] = self.elapsed_s()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from the time spent."""
        self.spent_s = checkpoint["geoseg_spent_s"]


class Training(Learning):
    """A network learning from partial labels.

    Args:
        network: of :func:`geoseg.networks.build`; one that offers ``forward_with_auxiliary`` was built with ``auxiliary``.
        loss: of label codes.
        options: the recipe.
        legend: the classes.
    """

    def __init__(self, network: torch.nn.Module, loss: SummedLoss, options: TrainOptions, legend: Legend) -> None:
        super().__init__(network, options.schedule)
        self.loss, self.legend = loss, legend
        self.auxiliary = options.loss.auxiliary if _has_auxiliary(options) else 0.0
        self.confusion = Confusion.empty(_CODES, len(legend))

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Loss of one batch, that of the auxiliary head included."""
        pixels, labels = batch
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        if self.auxiliary:
            logits, auxiliary = self.network.forward_with_auxiliary(pixels)  # type: ignore[operator]
            loss: Tensor = self.loss(logits, labels) + self.auxiliary * self.loss(auxiliary, labels)
        else:
            loss = self.loss(self.network(pixels), labels)
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(pixels))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Count from zero."""
        self.confusion = Confusion.empty(_CODES, len(self.legend))

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Count one image."""
        self.confusion += confusion(self.network, batch, len(self.legend))

    def on_validation_epoch_end(self) -> None:
        """Log the IoU of each class."""
        iou = self.confusion.iou(self.loss.allowed.cpu().numpy())
        figures = {f"iou_{c.name}": float(value) for c, value in zip(self.legend.classes, iou, strict=True)} | {"miou": _mean(iou)}
        self.log_dict(figures, batch_size=1)
        shown = " ".join(f"{key.removeprefix('iou_')} {value:.3f}" for key, value in figures.items())
        _log.info("step %d, %.1f min: %s", self.global_step, self.elapsed_s() / 60, shown)


def train(
    config: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    data: str | Path | None = None,
    encoder_weights: str | Path | None = None,
    force: bool = False,
) -> ModelCard:
    """Train a model and write its folder.

    A run that was stopped goes on from its last checkpoint in ``out/training``. A recipe whose architecture is a Mask R-CNN is that of
    :mod:`geoseg.verbs.train_instances`.

    Args:
        config: YAML recipe, or its table.
        out: model folder to write: ``model.json`` and ``model.safetensors`` at the end; log and checkpoint in ``training/``.
        data: folder of the sets, instead of the recipe's.
        encoder_weights: file or name of pretrained weights to begin with, instead of the recipe's.
        force: whether to start over instead of going on.

    Returns:
        the card of the trained model.

    Raises:
        OptionsError: if the recipe, a set or the pretrained weights are not usable.
        CardError: if the network is unknown.
        ReadError: if an image cannot be decoded.
        ResumeError: if the checkpoint belongs to another recipe.
    """
    if _architecture(config) in maskrcnn.names():
        from geoseg.verbs import train_instances  # it builds on this room

        return train_instances.train(config, out, data=data, encoder_weights=encoder_weights, force=force)
    options = read_options(config, data, encoder_weights)
    legend = find_legend(options.model.legend)
    work = Path(out) / _WORK
    checkpoint = take_up(work, options, force=force)
    pl.seed_everything(options.seed)
    if options.threads:
        torch.set_num_threads(options.threads)
    network = _network(options, legend, training=True)
    if options.encoder_weights is not None and checkpoint is None:
        model = options.model
        load_encoder(network, find(model.architecture), model.options, len(model.bands), options.encoder_weights)
    network = network.to(memory_format=torch.channels_last)
    source = Data(options, legend, network.stride)
    loss = _loss(source, options.loss)
    module = Training(network, loss, options, legend)
    trainer(options.schedule, options.precision, work).fit(module, source, ckpt_path=checkpoint, weights_only=False if checkpoint else None)
    return export(Path(out), module, source, options, legend)


def preview(config: str | Path | Mapping[str, Any], out: str | Path, *, data: str | Path | None = None, chips: int = 12) -> Path:
    """Draw the first chips of a training that is not begun, with their labels.

    Args:
        config: YAML recipe, or its table.
        out: folder of the picture ``chips.png``.
        data: folder of the sets, instead of the recipe's.
        chips: how many.

    Returns:
        path of the picture.

    Raises:
        OptionsError: if the recipe or a set is not usable.
        ReadError: if an image cannot be decoded.
        OutputError: if the picture cannot be written.
    """
    if _architecture(config) in maskrcnn.names():
        raise OptionsError("the chips of a recipe for instances cannot be drawn; leave --dry-run out")
    options = read_options(config, data)
    legend, scaling = find_legend(options.model.legend), options.model.scaling
    source = Data(options, legend, stride=1)
    batches = source.chips(0, -(-chips // options.chips.batch))
    pairs = [pair for index in range(len(batches)) for pair in zip(*(each.numpy() for each in batches[index]), strict=True)][:chips]
    mean, std = (np.array(figures, np.float32)[:, None, None] for figures in (scaling.mean, scaling.std))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    write_chips(folder / _CHIPS, [pixels * std + mean for pixels, _ in pairs], [codes for _, codes in pairs], source.allowed, legend)
    return folder / _CHIPS


def _architecture(config: str | Path | Mapping[str, Any]) -> str:
    """What a recipe trains; empty if it does not say."""
    table = config if isinstance(config, Mapping) else read_table(config)
    model = table.get("model")
    return str(model.get("architecture", "")) if isinstance(model, Mapping) else ""


def read_options(
    config: str | Path | Mapping[str, Any], data: str | Path | None = None, encoder_weights: str | Path | None = None
) -> TrainOptions:
    """Read a recipe of a network with logits; see `read_recipe`.

    Raises:
        OptionsError: also if it speaks of the auxiliary head in the wrong place.
    """
    options = read_recipe(TrainOptions, config, data, encoder_weights)
    if "auxiliary" in options.model.options:
        raise OptionsError(f"{_named(config)}: model.options.auxiliary is decided by training; set loss.auxiliary, 0 for no auxiliary head")
    return options


def read_recipe(
    kind: type[R],
    config: str | Path | Mapping[str, Any],
    data: str | Path | None = None,
    encoder_weights: str | Path | None = None,
) -> R:
    """Read a recipe; what is given beside it stands before what is in it.

    Raises:
        OptionsError: if a key is unknown, missing or of the wrong type, or the data folder is not there.
    """
    table = dict(config) if isinstance(config, Mapping) else read_table(config)
    given = {"data": data, "encoder_weights": encoder_weights}
    options = parse(kind, table | {key: str(value) for key, value in given.items() if value is not None}, _named(config))
    if not options.data.is_dir():
        raise OptionsError(f"{_named(config)}: data folder {options.data} is not there; name the folder that holds the scenes with --data")
    return options


def _named(config: str | Path | Mapping[str, Any]) -> str:
    return "recipe" if isinstance(config, Mapping) else str(config)


def warmed_cosine(progress: float, warmup: float) -> float:
    """Share of the highest learning rate: up linearly, down along half a cosine to 0 at ``progress`` 1."""
    if progress < warmup:
        return max(progress, 0.002) / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def confusion(network: torch.nn.Module, batch: tuple[Tensor, Tensor], classes: int) -> Confusion:
    """Predict a batch and count label codes against predicted channels."""
    pixels, labels = batch
    channels = network(pixels.contiguous(memory_format=torch.channels_last)).argmax(1)
    return Confusion.of(labels.cpu().numpy(), channels.cpu().numpy(), _CODES, classes)


def score(network: torch.nn.Module, images: HeldOut, allowed: np.ndarray[Any, Any], legend: Legend, *, bf16: bool) -> dict[str, Any]:
    """IoU and F1 of each class and their means over whole images.

    Args:
        network: in evaluation mode, on the CPU.
        images: to predict.
        allowed: (C, K) bool, the classes each label code allows.
        legend: the classes.
        bf16: whether to multiply in bfloat16, as training did.

    Returns:
        ``images``, ``labelled_mpx``, ``iou``, ``f1`` (by class name, only classes that occur), ``miou``, ``mf1``, ``accuracy``.
    """
    total = Confusion.empty(_CODES, len(legend))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for index in range(len(images)):
            pixels, labels = images[index]
            total += confusion(network, (pixels[None], labels[None]), len(legend))
    iou, f1 = total.iou(allowed), total.f1(allowed)
    return {
        "images": len(images.images),
        "labelled_mpx": round(float(total.counts[allowed.any(1)].sum()) / 1e6, 2),
        "iou": _by_class(legend, iou),
        "f1": _by_class(legend, f1),
        "miou": round(_mean(iou), 3),
        "mf1": round(_mean(f1), 3),
        "accuracy": round(total.accuracy(allowed), 3),
    }


def export(out: Path, module: Training, source: Data, options: TrainOptions, legend: Legend) -> ModelCard:
    """Write weights in half precision and the card with the scores of exactly these weights.

    Raises:
        CardError: if the recipe's facts do not fit together.
    """
    network = _network(options, legend, training=False)
    known = network.state_dict().keys()
    weights = {key: value for key, value in module.network.state_dict().items() if key in known}
    fresh = write_weights(out, weights)
    network.load_state_dict(load_file(fresh))
    network.float().eval().to(memory_format=torch.channels_last)
    bf16 = options.precision == "bf16-mixed"
    scores = {held.name: score(network, source.held_out(held), source.allowed, legend, bf16=bf16) for held in options.validation}
    model = options.model
    card = ModelCard(
        **model.model_dump(exclude={"legend", "scaling"}),
        scaling=model.scaling,
        legend=legend,
        parameters=sum(p.numel() for p in network.parameters()),
        stride=network.stride,
        training_data=_credits(source, options),
        scores={"measured": _how(module, options), **scores},
        sha256=hashlib.sha256(fresh.read_bytes()).hexdigest(),
    )
    settle_model(out, fresh, card)
    return card


def write_weights(out: Path, weights: Mapping[str, Tensor]) -> Path:
    """Write weights in half precision beside their place in a model folder; returns the path."""
    out.mkdir(parents=True, exist_ok=True)
    fresh = out / f".{WEIGHTS_NAME}.part"
    save_file({key: _halved(value) for key, value in weights.items()}, fresh)
    fresh.chmod(0o644)
    return fresh


def settle_model(out: Path, fresh: Path, card: ModelCard) -> None:
    """Put weights that `write_weights` wrote and their card into their places, the card last."""
    fresh_card = out / f".{CARD_NAME}.part"
    fresh_card.write_text(card.to_json(), encoding="utf-8")
    for path, name in ((fresh, WEIGHTS_NAME), (fresh_card, CARD_NAME)):
        _settle(path, out / name)


def _settle(path: Path, target: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.replace(target)


def _halved(value: Tensor) -> Tensor:
    return (value.half() if value.is_floating_point() else value).contiguous()


def _network(options: TrainOptions, legend: Legend, *, training: bool) -> Any:
    model, auxiliary = options.model, {"auxiliary": True} if training and _has_auxiliary(options) else {}
    return build(model.architecture, len(model.bands), len(legend), **model.options, **auxiliary)


def _has_auxiliary(options: TrainOptions) -> bool:
    return options.loss.auxiliary > 0 and "auxiliary" in find(options.model.architecture).options


def _loss(source: Data, options: LossOptions) -> SummedLoss:
    allowed, shares = torch.from_numpy(source.allowed), source.shares()
    weights = balanced_weights(shares, allowed, power=options.balance, ambiguous=options.ambiguous)
    for code in torch.nonzero(weights).flatten().tolist():
        _log.info("code %d: %.2f %% of labelled pixels, weight %.2f", code, 100 * shares[code], weights[code])
    return SummedLoss(PartialLabelLoss(allowed, weights, push=options.push), options.terms)


def trainer(schedule: ScheduleOptions, precision: Precision, work: Path) -> pl.Trainer:
    """Lightning's trainer of a recipe: moving average of the weights, a checkpoint at each validation, a log as CSV in ``work``."""
    return pl.Trainer(
        default_root_dir=work,
        accelerator="auto",
        devices=1,
        precision=precision,
        max_steps=schedule.max_steps,
        max_epochs=-1,
        reload_dataloaders_every_n_epochs=1,
        gradient_clip_val=5.0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=CSVLogger(work, name="log"),
        callbacks=[
            EMAWeightAveraging(decay=schedule.average),
            ModelCheckpoint(work, filename=_LAST, enable_version_counter=False, save_on_train_epoch_end=True),
        ],
    )


def take_up(work: Path, options: Table, *, force: bool) -> Path | None:
    """The checkpoint to go on from, if any; also writes down the recipe of this run.

    Raises:
        ResumeError: if the checkpoint belongs to another recipe.
    """
    recipe, last = work / "recipe.json", work / f"{_LAST}.ckpt"
    facts = options.model_dump_json(exclude={"data", "workers", "threads"}, indent=2)
    if last.exists() and not force:
        if recipe.read_text(encoding="utf-8") != facts:
            raise ResumeError(f"{work}: the checkpoint was made with another recipe; choose another folder, or start over with --force")
        return last
    work.mkdir(parents=True, exist_ok=True)
    last.unlink(missing_ok=True)
    recipe.write_text(facts, encoding="utf-8")
    return None


def find_legend(name: str) -> Legend:
    """The legend of a recipe: ``isprs``, or a YAML file."""
    return ISPRS if name == ISPRS.name else Legend.from_yaml(name)


def _allowed(sets: tuple[LabelledSet, ...]) -> np.ndarray[Any, Any]:
    """(256, K) bool, what each code allows; sets that are used together have to agree on it."""
    first = sets[0]
    allowed = first.allowed.copy()
    for other in sets[1:]:
        clash = np.flatnonzero(allowed.any(1) & other.allowed.any(1) & (allowed != other.allowed).any(1))
        if len(clash):
            raise OptionsError(
                f"{other.name}: code {clash[0]} stands for other classes than in a set before it ({first.name}, ...); "
                "sets of one recipe must agree on their codes"
            )
        allowed |= other.allowed
    return allowed


def begun_with(encoder_weights: str | Path | None) -> list[str]:
    """What a card says of pretrained weights: one line, or none."""
    return [f"encoder, at first: {Path(encoder_weights).name}"] if encoder_weights else []


def _credits(source: Data, options: TrainOptions) -> tuple[str, ...]:
    """One line for each set that gave chips, and one for pretrained weights."""
    lines = begun_with(options.encoder_weights)
    for key in dict.fromkeys(each.data for each in options.sources):
        used, parts = source.sets[key], [_part(each) for each in options.sources if each.data == key]
        lines.append(f"{used.name} ({'; '.join(parts)}): {used.title}. Licence: {used.licence}. Attribution: {used.attribution}")
    return tuple(lines)


def _part(source: Source) -> str:
    return ", ".join(source.keep) + (f" without {', '.join(source.drop)}" if source.drop else "")


def _how(module: Training, options: TrainOptions) -> str:
    large = any(held.layout != "set" for held in options.validation)
    seen = f"val images of each group in windows of {options.model.tile} pixels" if large else "whole val images of each group"
    return (
        f"{seen} at {options.model.resolution_m} m, one pass without tiling, {options.precision}, half-precision "
        f"weights, after {module.global_step} steps in {module.elapsed_s() / 60:.0f} minutes; IoU and F1 of a class over pixels "
        "whose label is that class alone or excludes it; not comparable with published ISPRS scores"
    )


def _by_class(legend: Legend, values: np.ndarray[Any, Any]) -> dict[str, float]:
    return {c.name: round(float(value), 3) for c, value in zip(legend.classes, values, strict=True) if not math.isnan(value)}


def _mean(values: np.ndarray[Any, Any]) -> float:
    """Mean of the classes that occur; NaN if none does."""
    found = values[~np.isnan(values)]
    return float(found.mean()) if found.size else float("nan")
