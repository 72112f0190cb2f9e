"""What a training reads: chips to learn from, images to watch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from geoseg.chips import Chips, Pool, Source, in_units, native_range, ranged, resized, standardised
from geoseg.datasets import LabelledImage, LabelledScene, LabelledSet
from geoseg.datasets.labelled import matches
from geoseg.errors import OptionsError
from geoseg.legend import Legend
from geoseg.training.recipe import ModelOptions, Recipe, TrainOptions
from geoseg.window import Window

CODES = 256
"""Label codes are smaller than this."""

Images: TypeAlias = tuple[LabelledImage | LabelledScene, ...]
T = TypeVar("T")


class HeldOut(Dataset[tuple[Tensor, Tensor]]):
    """Validation images at the card's resolution: whole ones, one an item, and scenes in windows of the card's tile.

    Args:
        images: to read.
        model: scaling, resolution and tile.
        stride: height and width are filled up to multiples of it, with the mean colour and no label.
    """

    def __init__(self, images: Images, model: ModelOptions, stride: int) -> None:
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

    Attributes:
        sets: labelled sets by what of a source decides them.
        sources: that chips come from.
        held: held-out images of each group, the watched one first.
        allowed: (256, K) bool, the classes each code allows.

    Args:
        options: the recipe.
        legend: the classes.
        stride: of the network.
    """

    def __init__(self, options: TrainOptions, legend: Legend, stride: int) -> None:
        super().__init__()
        self.options, self.stride = options, stride
        rng = np.random.default_rng(options.seed)
        finest_m = options.model.resolution_m * options.chips.scale[0]
        self.sets: dict[Any, LabelledSet] = {}
        for source in (*options.sources, *options.validation):
            if source.data not in self.sets:
                self.sets[source.data] = source.read(options.data, legend, options.model.bands)
        self.allowed = _allowed(tuple(self.sets.values()))
        self.held: dict[str, Images] = {}
        self.sources, learnt = options.sources, self.sets
        if options.folds is not None and options.fold is not None:
            learnt, self.held[f"fold_{options.fold}_of_{options.folds}"] = _without_fold(options, self.sets, options.folds, options.fold)
            self.sources = tuple(each for each in options.sources if _chosen(learnt[each.data], each))
        self.held |= {each.name: self.sets[each.data].select(each.part, each.keep, each.drop) for each in options.validation}
        self.pools = tuple(Pool.load(learnt[each.data], each, finest_m, options.model.scaling, rng) for each in self.sources)
        self.groups: dict[str, HeldOut] = {}

    def chips(self, first: int, count: int, seed: int | None = None) -> Chips:
        """Batches ``first`` to ``first + count``."""
        options = self.options
        seed = options.seed if seed is None else seed
        return Chips(self.pools, options.chips, options.model.scaling, options.model.resolution_m, seed=seed, first=first, count=count)

    def held_out(self, name: str) -> HeldOut:
        """The images of one validation group, looked at once."""
        if name not in self.groups:
            self.groups[name] = HeldOut(self.held[name], self.options.model, self.stride)
        return self.groups[name]

    def shares(self, batches: int = 24) -> Tensor:
        """(C,) share of each code among labelled chip pixels, measured on a few batches.

        Raises:
            OptionsError: if nothing is labelled.
        """
        chips = self.chips(0, batches, seed=self.options.seed + 1)
        counts = sum((torch.bincount(chips[i][1].flatten().long(), minlength=CODES) for i in range(batches)), torch.zeros(CODES)).double()
        counts[torch.as_tensor(~self.allowed.any(1))] = 0
        if not counts.any():
            sources = ", ".join(source.set for source in self.options.sources)
            raise OptionsError(
                f"{sources}: no pixel of {batches} batches has a label that allows a class; are images and labels of one place?"
            )
        return counts / counts.sum()

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """The batches up to the next validation, going on where the trainer is."""
        first, count, mine = next_batches(self.options, self.trainer)
        return loader(self.chips(first, count), self.options, mine)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """The images of the first group, one at a time."""
        return DataLoader(self.held_out(next(iter(self.held))), batch_size=1)


def next_batches(options: Recipe, trainer: pl.Trainer | None) -> tuple[int, int, range]:
    """The batches up to the next validation, going on where the trainer is.

    Batches are numbered through over all devices: each step takes ``accumulate`` of each of them, and each device every n-th one.

    Returns:
        number of the first, how many there are, and which of these belong to this device.
    """
    done, rank, ranks = (trainer.global_step, trainer.global_rank, trainer.world_size) if trainer else (0, 0, 1)
    schedule = options.schedule
    steps = max(1, min(schedule.validate_every, schedule.max_steps - done))
    each = schedule.accumulate * ranks
    return done * each, steps * each, range(rank, steps * each, ranks)


def loader(batches: Dataset[T], options: Recipe, mine: Sequence[int]) -> DataLoader[T]:
    """Batches, made beforehand by the workers of a recipe.

    Args:
        batches: by number.
        options: the recipe.
        mine: which of them, in this order.
    """
    context = "fork" if options.workers else None
    return DataLoader(Subset(batches, mine), batch_size=None, num_workers=options.workers, multiprocessing_context=context)


def folded(images: Collection[tuple[str, str]], folds: int, seed: int) -> dict[tuple[str, str], int]:
    """The fold of each image, from 1: they are ordered by name, shuffled by the seed, and dealt out in turn.

    Args:
        images: set and name of each.
        folds: how many.
        seed: of the shuffling.

    Raises:
        OptionsError: if there are fewer images than folds.
    """
    ordered = sorted(images)
    if len(ordered) < folds:
        raise OptionsError(f"the sources have {len(ordered)} images, which cannot be dealt into {folds} folds; ask for fewer folds")
    order = np.random.default_rng(seed).permutation(len(ordered))
    return {ordered[place]: 1 + turn % folds for turn, place in enumerate(order)}


def _without_fold(options: TrainOptions, sets: dict[Any, LabelledSet], folds: int, fold: int) -> tuple[dict[Any, LabelledSet], Images]:
    """The sets without the images of one fold, and these images."""
    for source in options.sources:
        sets[source.data].select(source.part, source.keep, source.drop)  # refuses what matches nothing
    found = {
        (source.set, name): sets[source.data].images[name] for source in options.sources for name in _chosen(sets[source.data], source)
    }
    held = {image for image, number in folded(found, folds, options.seed).items() if number == fold}
    left = {
        data: replace(
            each, split={part: tuple(name for name in names if (data[0], name) not in held) for part, names in each.split.items()}
        )
        for data, each in sets.items()
    }
    return left, tuple(found[image] for image in sorted(held))


def _chosen(labelled: LabelledSet, source: Source) -> tuple[str, ...]:
    """Names of the images of a set that a source takes; none if all were held out."""
    names = labelled.split.get(source.part, ())
    return tuple(name for name in names if matches(name, source.keep) and not matches(name, source.drop))


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
