"""Train a network on labelled sets, and write the model folder that ``predict`` reads."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from geoseg.card import ModelCard
from geoseg.chips import Source
from geoseg.confusion import Confusion
from geoseg.errors import OptionsError
from geoseg.legend import Legend
from geoseg.losses import PartialLabelLoss, SummedLoss, balanced_weights
from geoseg.networks import build, find
from geoseg.networks.weights import load_encoder
from geoseg.report import write_chips
from geoseg.training.begin import begin_with, begun_with
from geoseg.training.data import CODES, Data, HeldOut
from geoseg.training.finder import find_rate
from geoseg.training.loop import WORK, Learning, Learnt, Watch, draft_card, learn, settle_model, take_up, write_weights
from geoseg.training.recipe import Config, LossOptions, TrainOptions, is_of_instances, read_options

_log = logging.getLogger(__name__)
_CHIPS = "chips.png"


class Training(Learning):
    """A network learning from partial labels.

    Args:
        network: of :func:`geoseg.networks.build`; one that offers ``forward_with_auxiliary`` was built with ``auxiliary``.
        loss: of label codes.
        options: the recipe.
        legend: the classes.
    """

    FIGURE = "miou"

    def __init__(self, network: torch.nn.Module, loss: SummedLoss, options: TrainOptions, legend: Legend) -> None:
        super().__init__(network, options.schedule)
        self.loss, self.legend = loss, legend
        self.auxiliary = options.loss.auxiliary if _has_auxiliary(options) else 0.0
        self.confusion = Confusion.empty(CODES, len(legend))

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
        self.confusion = Confusion.empty(CODES, len(self.legend))

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
    config: Config,
    out: str | Path,
    *,
    data: str | Path | None = None,
    init: str | Path | None = None,
    encoder_weights: str | Path | None = None,
    fold: int | None = None,
    force: bool = False,
    watch: Watch | None = None,
) -> ModelCard:
    """Train a model and write its folder.

    A run that was stopped, however, goes on from its last checkpoint in ``out/training``, to the same weights on the same kind of device
    as if it had not been stopped; unless a clock ends it (``max_minutes``). A recipe whose architecture is a Mask R-CNN is that of
    :mod:`geoseg.verbs.train_instances`. With several ``devices``, Lightning starts the calling script again for each of the others, and
    ends these scripts here.

    Args:
        config: YAML recipe, or its table.
        out: model folder to write: ``model.json`` and ``model.safetensors`` at the end; logs and checkpoints in ``training/``.
        data: folder of the sets, instead of the recipe's.
        init: name or folder of a model to begin with, instead of the recipe's.
        encoder_weights: file or name of pretrained weights to begin with, instead of the recipe's.
        fold: which of the recipe's folds to hold out, from 1.
        force: whether to start over instead of going on.
        watch: called after each batch.

    Returns:
        the card of the trained model.

    Raises:
        OptionsError: if the recipe, a set or the weights to begin with are not usable.
        CardError: if the network or the model to begin with is unknown.
        ReadError: if an image cannot be decoded.
        ResumeError: if the checkpoint belongs to another recipe.
    """
    if is_of_instances(config, init):
        from geoseg.verbs import train_instances

        return train_instances.train(config, out, data=data, init=init, encoder_weights=encoder_weights, force=force, watch=watch)
    options = read_options(config, data, init=init, encoder_weights=encoder_weights, fold=fold)
    work = Path(out) / WORK
    checkpoint = take_up(work, options, force=force)
    module, source = _prepare(options, fresh=checkpoint is None)
    draft = _draft(source, options, module.legend)
    learnt = learn(module, source, options, work, checkpoint, watch)
    return export(Path(out), learnt, source, options, draft)


def preview(config: Config, out: str | Path, *, data: str | Path | None = None, chips: int = 12, **given: Any) -> Path:
    """Draw the first chips of a training that is not begun, with their labels.

    Args:
        config: YAML recipe, or its table.
        out: folder of the picture ``chips.png``.
        data: folder of the sets, instead of the recipe's.
        chips: how many.
        given: ``init``, ``encoder_weights`` and ``fold`` as in `train`.

    Returns:
        path of the picture.

    Raises:
        OptionsError: if the recipe or a set is not usable.
        ReadError: if an image cannot be decoded.
        OutputError: if the picture cannot be written.
    """
    if is_of_instances(config, given.get("init")):
        raise OptionsError("the chips of a recipe for instances cannot be drawn; leave --dry-run out")
    options = read_options(config, data, **given)
    legend, scaling = options.model.classes(), options.model.scaling
    source = Data(options, legend, stride=1)
    batches = source.chips(0, -(-chips // options.chips.batch))
    pairs = [pair for index in range(len(batches)) for pair in zip(*(each.numpy() for each in batches[index]), strict=True)][:chips]
    mean, std = (np.array(figures, np.float32)[:, None, None] for figures in (scaling.mean, scaling.std))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    write_chips(folder / _CHIPS, [pixels * std + mean for pixels, _ in pairs], [codes for _, codes in pairs], source.allowed, legend)
    return folder / _CHIPS


def find_learning_rate(config: Config, out: str | Path, *, data: str | Path | None = None, **given: Any) -> tuple[float, Path]:
    """Try learning rates from tiny to large on a training that is not begun.

    Args:
        config: YAML recipe, or its table.
        out: folder of the curve ``learning_rate.png``.
        data: folder of the sets, instead of the recipe's.
        given: ``init``, ``encoder_weights`` and ``fold`` as in `train`.

    Returns:
        the rate at which the loss falls most steeply, and the path of the curve.

    Raises:
        OptionsError: if the recipe or a set is not usable, or the loss does not fall.
        ReadError: if an image cannot be decoded.
    """
    if is_of_instances(config, given.get("init")):
        raise OptionsError("no learning rate can be found for a recipe for instances; leave --find-lr out")
    options = read_options(config, data, **given)
    module, source = _prepare(options, fresh=True)
    return find_rate(module, source.chips, options, Path(out))


def _prepare(options: TrainOptions, *, fresh: bool) -> tuple[Training, Data]:
    """A network with the weights that it begins with (unless a checkpoint brings them), and what it learns from."""
    model, legend = options.model, options.model.classes()
    pl.seed_everything(options.seed, verbose=False)
    if options.threads:
        torch.set_num_threads(options.threads)
    network = _network(options, legend, training=True)
    if fresh and options.encoder_weights is not None:
        load_encoder(network, find(model.architecture), model.options, len(model.bands), options.encoder_weights)
    if fresh and options.init is not None:
        facts = (model.architecture, model.options, model.bands, legend)
        begin_with(network, options.init, *facts, make=_maker(options, training=True), defaults=find(model.architecture).options)
    source = Data(options, legend, network.stride)
    loss = _loss(source, options.loss)
    return Training(network.to(memory_format=torch.channels_last), loss, options, legend), source


def confusion(network: torch.nn.Module, batch: tuple[Tensor, Tensor], classes: int) -> Confusion:
    """Predict a batch and count label codes against predicted channels."""
    pixels, labels = batch
    channels = network(pixels.contiguous(memory_format=torch.channels_last)).argmax(1)
    return Confusion.of(labels.cpu().numpy(), channels.cpu().numpy(), CODES, classes)


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
    total = Confusion.empty(CODES, len(legend))
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


def export(out: Path, learnt: Learnt, source: Data, options: TrainOptions, draft: ModelCard) -> ModelCard:
    """Write weights in half precision and the card with the scores of exactly these weights."""
    network = _network(options, draft.legend, training=False)
    known = network.state_dict().keys()
    fresh = write_weights(out, {key: value for key, value in learnt.weights.items() if key in known})
    network.load_state_dict(load_file(fresh))
    network.float().eval().to(memory_format=torch.channels_last)
    bf16 = options.multiplied_in == "bf16-mixed"
    scores = {name: score(network, source.held_out(name), source.allowed, draft.legend, bf16=bf16) for name in source.held}
    return settle_model(out, fresh, draft, {"measured": _how(learnt, options), **scores})


def _draft(source: Data, options: TrainOptions, legend: Legend) -> ModelCard:
    with torch.device("meta"):
        network = _network(options, legend, training=False)
    return draft_card(options, legend, network, _credits(source, options))


def _network(options: TrainOptions, legend: Legend, *, training: bool) -> Any:
    return _maker(options, training=training)(len(options.model.bands), len(legend))


def _maker(options: TrainOptions, *, training: bool) -> Callable[[int, int], Any]:
    """The recipe's network for any numbers of bands and classes; with an auxiliary head where it is to be trained."""
    model, auxiliary = options.model, {"auxiliary": True} if training and _has_auxiliary(options) else {}
    return lambda bands, classes: build(model.architecture, bands, classes, **model.options, **auxiliary)


def _has_auxiliary(options: TrainOptions) -> bool:
    return options.loss.auxiliary > 0 and "auxiliary" in find(options.model.architecture).options


def _loss(source: Data, options: LossOptions) -> SummedLoss:
    allowed, shares = torch.from_numpy(source.allowed), source.shares()
    weights = balanced_weights(shares, allowed, power=options.balance, ambiguous=options.ambiguous)
    for code in torch.nonzero(weights).flatten().tolist():
        _log.info("code %d: %.2f %% of labelled pixels, weight %.2f", code, 100 * shares[code], weights[code])
    return SummedLoss(PartialLabelLoss(allowed, weights, push=options.push), options.terms)


def _credits(source: Data, options: TrainOptions) -> tuple[str, ...]:
    """One line for each set that gave chips, and one for pretrained weights."""
    lines = begun_with(options.init, options.encoder_weights)
    for key in dict.fromkeys(each.data for each in options.sources):
        used, parts = source.sets[key], [_part(each) for each in options.sources if each.data == key]
        lines.append(f"{used.name} ({'; '.join(parts)}): {used.title}. Licence: {used.licence}. Attribution: {used.attribution}")
    return tuple(lines)


def _part(source: Source) -> str:
    return ", ".join(source.keep) + (f" without {', '.join(source.drop)}" if source.drop else "")


def _how(learnt: Learnt, options: TrainOptions) -> str:
    large = any(each.layout != "set" for each in (*options.validation, *(options.sources if options.folds else ())))
    seen = f"val images of each group in windows of {options.model.tile} pixels" if large else "whole val images of each group"
    return (
        f"{seen} at {options.model.resolution_m} m, one pass without tiling, {options.multiplied_in}, half-precision "
        f"weights, after {learnt.steps} steps in {learnt.minutes:.0f} minutes; IoU and F1 of a class over pixels "
        "whose label is that class alone or excludes it; not comparable with published ISPRS scores"
    )


def _by_class(legend: Legend, values: np.ndarray[Any, Any]) -> dict[str, float]:
    return {c.name: round(float(value), 3) for c, value in zip(legend.classes, values, strict=True) if not math.isnan(value)}


def _mean(values: np.ndarray[Any, Any]) -> float:
    """Mean of the classes that occur; NaN if none does."""
    found = values[~np.isnan(values)]
    return float(found.mean()) if found.size else float("nan")
