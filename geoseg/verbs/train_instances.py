"""Train a Mask R-CNN on scenes with polygons, and write the model folder that ``predict`` reads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from geoseg.average_precision import AveragePrecision
from geoseg.card import ModelCard
from geoseg.chips import ranged, standardised
from geoseg.datasets.outlined import OutlinedScene
from geoseg.detector import cropped
from geoseg.errors import OptionsError
from geoseg.instances import Instance, overlaps
from geoseg.legend import Legend
from geoseg.networks.maskrcnn import MaskRCNN, build
from geoseg.networks.weights import load_resnet
from geoseg.training.begin import begin_with, begun_with
from geoseg.training.data import loader, next_batches
from geoseg.training.loop import WORK, Learning, Learnt, Watch, draft_card, learn, settle_model, take_up, write_weights
from geoseg.training.recipe import Config, ModelOptions, Recipe, ScheduleOptions, Table, read_recipe
from geoseg.window import Window

_log = logging.getLogger(__name__)
_SCORED_FROM = 0.05  # of the scores: an average precision wants the unsure ones, too

Batch = tuple[Tensor, list[dict[str, Tensor]]]
"""Scaled pixels (N, B, H, W) float32, and of each image the targets of :meth:`geoseg.networks.maskrcnn.MaskRCNN.losses`."""


class OutlinedSource(Table):
    """A scene and the polygons around all its instances.

    Attributes:
        scene: GeoTIFF, below the data folder.
        polygons: vector file, below the data folder.
        label: name of the class of all polygons; without it the column ``class_name`` says it of each.
        credit: what it is, its licence and attribution, for the card.
        weight: chance of a chip to come from here, relative to the other sources.
    """

    scene: str
    polygons: str
    label: str | None = None
    credit: str
    weight: float = Field(default=1.0, gt=0)


class OutlinedHeld(OutlinedSource):
    """A validation scene and the name of its scores."""

    name: str


class InstanceChipOptions(Table):
    """How chips are cut and varied: flipped, turned by quarters, and brightened.

    Attributes:
        size: height and width in pixels, a multiple of 32.
        batch: chips a batch.
        rare: share of chips around an instance, instead of anywhere.
        brightness: jitter of the logarithm of the gain.
    """

    size: int = Field(ge=32, multiple_of=32)
    batch: int = Field(ge=1)
    rare: float = Field(default=0.7, ge=0, le=1)
    brightness: float = Field(default=0.2, ge=0)


class InstanceOptions(Recipe):
    """One recipe for instances; ``encoder_weights`` are a ResNet-50's, see :func:`geoseg.networks.weights.load_resnet`.

    Attributes:
        sources: where chips come from.
        chips: how they are cut.
        validation: held-out scenes; the first is watched during training, all are scored at the end.
    """

    sources: tuple[OutlinedSource, ...] = Field(min_length=1)
    chips: InstanceChipOptions
    validation: tuple[OutlinedHeld, ...] = Field(min_length=1)


class InstanceChips(Dataset[Batch]):
    """Batches of chips. Batch ``i`` depends on the seed and ``i`` alone, so that a run can stop and go on.

    Args:
        scenes: to cut from.
        options: the recipe.
        first: number of the first batch.
        count: number of batches.
    """

    def __init__(self, scenes: Sequence[OutlinedScene], options: InstanceOptions, first: int = 0, count: int = 1) -> None:
        self.scenes, self.options, self.first, self.count = scenes, options, first, count
        weights = np.array([source.weight for source in options.sources])
        self.chances = weights / weights.sum()

    def __len__(self) -> int:
        """Number of batches."""
        return self.count

    def __getitem__(self, index: int) -> Batch:
        """One batch.

        Raises:
            IndexError: past the last batch.
            ReadError: if a part of a scene cannot be decoded.
        """
        if not 0 <= index < self.count:
            raise IndexError(index)
        rng = np.random.default_rng((self.options.seed, self.first + index))
        pairs = [self._chip(rng) for _ in range(self.options.chips.batch)]
        return torch.stack([pixels for pixels, _ in pairs]), [target for _, target in pairs]

    def _chip(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        scene = self.scenes[rng.choice(len(self.scenes), p=self.chances)]
        chips, (height, width) = self.options.chips, scene.scene.shape
        if len(scene.shapes) and rng.random() < chips.rare:
            at = scene.shapes[rng.integers(len(scene.shapes))].centroid
            middle = np.array([at.y, at.x]) + rng.uniform(-0.4, 0.4, 2) * chips.size
        else:
            middle = rng.uniform(0, 1, 2) * (height, width)
        row, col = (
            int(np.clip(round(float(place) - chips.size / 2), 0, max(0, length - chips.size)))
            for place, length in zip(middle, (height, width), strict=True)
        )
        turns, flip, gain = int(rng.integers(4)), bool(rng.integers(2)), float(np.exp(rng.uniform(-chips.brightness, chips.brightness)))
        return _pair(scene, Window(row, col, chips.size, chips.size), self.options.model, gain, turns, flip=flip)


class Windows(Dataset[Batch]):
    """A whole validation scene in windows as large as a chip, one an item.

    Args:
        scene: to cut.
        options: the recipe.
    """

    def __init__(self, scene: OutlinedScene, options: InstanceOptions) -> None:
        size = options.chips.size
        self.scene, self.model = scene, options.model
        rows, cols = (range(0, length, size) for length in scene.scene.shape)
        self.windows = [Window(row, col, size, size) for row in rows for col in cols]

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.windows)

    def __getitem__(self, index: int) -> Batch:
        """One window as a batch."""
        pixels, target = _pair(self.scene, self.windows[index], self.model)
        return pixels[None], [target]


def _pair(
    scene: OutlinedScene, window: Window, model: ModelOptions, gain: float = 1.0, turns: int = 0, *, flip: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Scaled pixels (B, H, W) and the targets of one window, turned, flipped and brightened."""
    pixels, valid, labels, masks = scene.cut(window)
    values = standardised(np.clip(ranged(pixels, model.scaling) * np.float32(gain), 0, 1), model.scaling) * valid
    values, masks = _turned(values, turns, flip=flip), _turned(masks, turns, flip=flip)
    boxes = np.array([_box(mask) for mask in masks], np.float32).reshape(-1, 4)
    target = {
        "boxes": torch.from_numpy(boxes),
        "labels": torch.from_numpy(labels),
        "masks": torch.from_numpy(np.ascontiguousarray(masks, np.uint8)),
    }
    return torch.from_numpy(np.ascontiguousarray(values, np.float32)), target


def _turned(layers: NDArray[Any], turns: int, *, flip: bool) -> NDArray[Any]:
    """Layers (N, h, w) after some quarter turns, and mirrored."""
    turned = np.rot90(layers, turns, (1, 2))
    return turned[:, :, ::-1] if flip else turned


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the pixels inside."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1


class InstanceData(pl.LightningDataModule):
    """Chips to learn from, windows to watch.

    Args:
        options: the recipe.
        legend: the classes.
    """

    def __init__(self, options: InstanceOptions, legend: Legend) -> None:
        super().__init__()
        self.options = options
        self.scenes, self.held = ([_read(source, options, legend) for source in each] for each in (options.sources, options.validation))

    def train_dataloader(self) -> DataLoader[Batch]:
        """The batches up to the next validation, going on where the trainer is."""
        first, count, mine = next_batches(self.options, self.trainer)
        return loader(InstanceChips(self.scenes, self.options, first, count), self.options, mine)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The windows of the first validation scene."""
        return DataLoader(Windows(self.held[0], self.options), batch_size=None)


def _read(source: OutlinedSource, options: InstanceOptions, legend: Legend) -> OutlinedScene:
    model = options.model
    found = OutlinedScene.read(
        options.data / source.scene,
        options.data / source.polygons,
        legend,
        bands=model.bands,
        resolution_m=model.resolution_m,
        label=source.label,
    )
    if found.scene.dtype != model.scaling.dtype:
        raise OptionsError(
            f"{found.scene.path}: is {found.scene.dtype}, the recipe's scaling is for {model.scaling.dtype}; convert one of them"
        )
    return found


class InstanceTraining(Learning):
    """A Mask R-CNN learning from boxes, labels and masks.

    Args:
        network: that learns.
        options: how long and how fast.
        legend: the classes.
    """

    FIGURE = "ap"

    def __init__(self, network: MaskRCNN, options: ScheduleOptions, legend: Legend) -> None:
        super().__init__(network, options)
        self.legend = legend
        self.figures = AveragePrecision()

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Sum of the five losses of one batch."""
        pixels, targets = batch
        losses = self.network.losses(pixels.contiguous(memory_format=torch.channels_last), targets)  # type: ignore[operator]
        loss: Tensor = torch.stack(list(losses.values())).sum()
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(pixels))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Count from zero."""
        self.figures = AveragePrecision()

    def validation_step(self, batch: Batch, _: int) -> None:
        """Count one window."""
        judge(self.figures, self.network, batch, len(self.legend))

    def on_validation_epoch_end(self) -> None:
        """Log the average precisions."""
        figures = self.figures.summary()
        self.log_dict(figures, batch_size=1)
        shown = " ".join(f"{key} {value:.3f}" for key, value in figures.items())
        _log.info("step %d, %.1f min: %s", self.global_step, self.elapsed_s() / 60, shown)


def judge(precision: AveragePrecision, network: torch.nn.Module, batch: Batch, classes: int) -> None:
    """Predict images and count what is found against what is there; labels stand for classes.

    Args:
        precision: where it is counted.
        network: in evaluation mode.
        batch: images and what is in them.
        classes: K.
    """
    pixels, targets = batch
    shape = (pixels.shape[2], pixels.shape[3])
    before, network.roi_heads.score_thresh = network.roi_heads.score_thresh, _SCORED_FROM  # type: ignore[union-attr]
    try:
        answers = network(pixels.contiguous(memory_format=torch.channels_last))
    finally:
        network.roi_heads.score_thresh = before  # type: ignore[union-attr]
    for answer, target in zip(answers, targets, strict=True):
        labels, masks = target["labels"].tolist(), target["masks"].cpu().numpy().astype(bool)
        true = [one for mask, label in zip(masks, labels, strict=True) if (one := Instance.of(mask, 0, 0, label, 1.0))]
        host = answer.cpu()
        rows = zip(cropped(host, shape), host.labels.tolist(), host.scores.tolist(), strict=True)
        found = [one for (mask, row, col), label, score in rows if (one := Instance.of(mask, row, col, label, score))]
        for label in range(1, classes + 1):
            mine, theirs = ([one for one in each if one.class_id == label] for each in (found, true))
            scores, areas, true_areas = (
                np.array(values, np.float64)
                for values in ([one.score for one in mine], [one.area for one in mine], [one.area for one in theirs])
            )
            precision.add(label, scores, areas, true_areas, overlaps(mine, theirs))


def train(
    config: Config,
    out: str | Path,
    *,
    data: str | Path | None = None,
    init: str | Path | None = None,
    encoder_weights: str | Path | None = None,
    force: bool = False,
    watch: Watch | None = None,
) -> ModelCard:
    """Train a model and write its folder; for the arguments see :func:`geoseg.verbs.train.train`.

    Raises:
        OptionsError: if the recipe, a vector file or the weights to begin with are not usable.
        CardError: if an option of the network is not usable, or there is no such model to begin with.
        SceneError: if a scene is not usable.
        ResumeError: if the checkpoint belongs to another recipe.
    """
    options = read_recipe(InstanceOptions, config, data, init=init, encoder_weights=encoder_weights)
    model, legend = options.model, options.model.classes()
    source = InstanceData(options, legend)
    pl.seed_everything(options.seed, verbose=False)
    if options.threads:
        torch.set_num_threads(options.threads)
    network = _network(options, legend)
    work = Path(out) / WORK
    checkpoint = take_up(work, options, force=force)
    if options.encoder_weights is not None and checkpoint is None:
        load_resnet(network.backbone.body, "resnet50", len(model.bands), options.encoder_weights)
    if options.init is not None and checkpoint is None:
        facts = (model.architecture, model.options, model.bands, legend)
        begin_with(network, options.init, *facts, make=lambda b, k: build(model.architecture, b, k, **model.options), defaults={})
    lines = dict.fromkeys(each.credit for each in options.sources)
    draft = draft_card(options, legend, network, (*begun_with(options.init, options.encoder_weights), *lines))
    module = InstanceTraining(network.to(memory_format=torch.channels_last), options.schedule, legend)
    return _export(Path(out), learn(module, source, options, work, checkpoint, watch), source, draft)


def _network(options: InstanceOptions, legend: Legend) -> MaskRCNN:
    return build(options.model.architecture, len(options.model.bands), len(legend), **options.model.options)


def _export(out: Path, learnt: Learnt, source: InstanceData, draft: ModelCard) -> ModelCard:
    """Write weights in half precision and the card with the scores of exactly these weights."""
    options, legend = source.options, draft.legend
    network = _network(options, legend)
    fresh = write_weights(out, learnt.weights)
    network.load_state_dict(load_file(fresh))
    network.eval().to(memory_format=torch.channels_last)
    scores: dict[str, Any] = {
        "measured": f"COCO average precision of masks in windows of {options.chips.size} pixels at {options.model.resolution_m} m, at most "
        f"100 detections of a class in each, half-precision weights, after {learnt.steps} steps in {learnt.minutes:.0f} minutes",
    }
    for held, scene in zip(options.validation, source.held, strict=True):
        scores[held.name] = _score(network, Windows(scene, options), len(legend))
    return settle_model(out, fresh, draft, scores)


def _score(network: MaskRCNN, windows: Windows, classes: int) -> dict[str, float | None]:
    """The six figures over a scene; None where no such instance is there."""
    precision = AveragePrecision()
    with torch.inference_mode():
        for number in range(len(windows)):
            judge(precision, network, windows[number], classes)
    return {name: None if np.isnan(value) else round(value, 3) for name, value in precision.summary().items()}
