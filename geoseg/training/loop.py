"""The loop of a training, on Lightning: how fast it learns, what it writes, and how it is taken up."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from geoseg.card import CARD_NAME, WEIGHTS_NAME, ModelCard
from geoseg.errors import OptionsError, ResumeError
from geoseg.legend import Legend
from geoseg.segmenter import tune_malloc
from geoseg.training.recipe import Decay, Recipe, ScheduleOptions

WORK = "training"
"""Folder of the log and the checkpoints, in the model's folder."""

_LAST, _BEST = "last", "best"
_NO_FACTS = {"data", "workers", "threads"}
"""Keys of a recipe that do not change what is learnt."""
_PLATEAU = 5
"""Validations without a better figure after which `plateau` halves the learning rate."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a training is, told to whoever watches.

    Attributes:
        step: steps done.
        share: of the run that is over, 0 to 1.
        steps_s: steps a second, since the run was last taken up.
        figure: what the last validation said.
    """

    step: int
    share: float
    steps_s: float
    figure: str


Watch: TypeAlias = Callable[[Standing], None]


def share_of_rate(decay: Decay, progress: float, warmup: float) -> float:
    """Share of the highest learning rate: up linearly, then down to 0 at ``progress`` 1.

    ``cosine`` falls along half a cosine, ``poly`` as ``(1 - x) ** 0.9`` (Chen et al. 2018, arXiv:1606.00915); ``constant`` stays, as does
    ``plateau`` here, which falls by what validations say.
    """
    if progress < warmup:
        return max(progress, 0.002) / warmup
    gone = (progress - warmup) / (1 - warmup)
    match decay:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * gone))
        case "poly":
            return float((1 - gone) ** 0.9)
        case "plateau" | "constant":
            return 1.0


class Learning(pl.LightningModule):
    """A network, how long and how fast it learns, and how a run is taken up.

    Args:
        network: that learns.
        options: how long and how fast.
    """

    FIGURE: ClassVar[str]
    """Logged by each validation; the higher, the better."""

    def __init__(self, network: torch.nn.Module, options: ScheduleOptions) -> None:
        super().__init__()
        self.network, self.schedule = network, options
        self.spent_s = 0.0
        self.since: float | None = None
        # torch's scheduler needs an optimizer to act on: this one's learning rate is the factor of the true one
        self._factor = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self._plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self._factor, mode="max", factor=0.5, patience=_PLATEAU - 1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW or SGD, without decay of vectors (biases, norms)."""
        parameters = list(self.network.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.schedule.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        if self.schedule.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.schedule.learning_rate, momentum=0.9)
        return torch.optim.AdamW(groups, lr=self.schedule.learning_rate)

    def progress(self) -> float:
        """Share of the run that is over, 0..1: of the steps or of the minutes, whichever is more; the same on all devices."""
        share = self.share()
        return share if self.schedule.max_minutes is None else float(self.trainer.strategy.broadcast(share))

    def share(self) -> float:
        """The same by the clock of this device."""
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
        if self.trainer.lr_scheduler_configs:  # the finder of learning rates tries its own
            return
        factor = self._factor.param_groups[0]["lr"]
        rate = self.schedule.learning_rate * factor * share_of_rate(self.schedule.decay, self.progress(), self.schedule.warmup)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop when the time is over."""
        if self.progress() >= 1 and not self.trainer.lr_scheduler_configs:
            self.trainer.should_stop = True

    def on_validation_end(self) -> None:
        """Let a learning rate fall that goes by what validations say."""
        if self.schedule.decay == "plateau" and self.progress() >= self.schedule.warmup:
            self._plateau.step(float(self.trainer.callback_metrics[self.FIGURE]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the time spent, and where the learning rate is."""
        checkpoint["geoseg_spent_s"] = self.elapsed_s()
        checkpoint["geoseg_over"] = self.trainer.should_stop
        checkpoint["geoseg_plateau"] = [self._plateau.state_dict(), self._factor.param_groups[0]["lr"]]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there; a run that was over stays so."""
        self.spent_s = checkpoint["geoseg_spent_s"]
        if "geoseg_plateau" in checkpoint:
            state, self._factor.param_groups[0]["lr"] = checkpoint["geoseg_plateau"]
            self._plateau.load_state_dict(state)
        if checkpoint.get("geoseg_over"):
            self.trainer.should_stop = True


class Telling(Callback):
    """Tells a watcher after each batch how far a training is.

    Args:
        watch: to call.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.since, self.first = time.monotonic(), 0

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Count from here."""
        self.since, self.first = time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Tell it."""
        if trainer.is_global_zero and isinstance(pl_module, Learning):
            figure = trainer.callback_metrics.get(pl_module.FIGURE)
            pace = (trainer.global_step - self.first) / max(time.monotonic() - self.since, 1e-9)
            self.watch(Standing(trainer.global_step, pl_module.share(), pace, "" if figure is None else f"{pl_module.FIGURE} {figure:.3f}"))


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that replace the one before when they are on disk as a whole; whatever ends a run, a good one is there."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ARG002
        """Write beside the place, then move."""
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.name}.part")
        with part.open("wb") as file:
            torch.save(checkpoint, file)
        settle(part, place)


def trainer(options: Recipe, figure: str, work: Path, watch: Watch | None = None) -> pl.Trainer:
    """Lightning's trainer of a recipe: moving average of the weights, a checkpoint at each validation, logs in ``work``.

    Args:
        options: the recipe.
        figure: what a validation is judged by.
        work: folder.
        watch: called after each batch.
    """
    schedule = options.schedule
    loggers: list[Logger] = [CSVLogger(work, name="log")]
    if importlib.util.find_spec("tensorboard"):
        loggers.append(TensorBoardLogger(work, name="tensorboard"))
    callbacks: list[Callback] = [EMAWeightAveraging(decay=schedule.average), *([Telling(watch)] if watch else [])]
    # What goes by a figure acts right after its validation: a run that is taken up begins with the end of an epoch that has none.
    if schedule.patience is not None:
        early: dict[str, Any] = {"mode": "max", "check_finite": False, "check_on_train_epoch_end": False}
        callbacks.append(EarlyStopping(figure, patience=schedule.patience, **early))
    if schedule.keep == _BEST:
        callbacks.append(_saving(work, _BEST, monitor=figure, mode="max", save_on_train_epoch_end=False))
    callbacks.append(_saving(work, _LAST, save_on_train_epoch_end=True))
    return pl.Trainer(
        default_root_dir=work,
        accelerator="auto",
        devices=options.devices,
        strategy="auto" if options.devices == 1 else DDPStrategy(find_unused_parameters=True, timeout=timedelta(hours=2)),
        use_distributed_sampler=False,
        precision=options.multiplied_in,
        max_steps=schedule.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=schedule.accumulate,
        reload_dataloaders_every_n_epochs=1,
        gradient_clip_val=5.0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=loggers,
        callbacks=callbacks,
        plugins=[WholeCheckpoints()],
    )


def _saving(work: Path, name: str, **when: Any) -> ModelCheckpoint:
    return ModelCheckpoint(work, filename=name, enable_version_counter=False, **when)


@dataclass(frozen=True, slots=True)
class Learnt:
    """What a training came to.

    Attributes:
        weights: of the network, averaged.
        steps: that it took.
        minutes: that it took.
    """

    weights: Mapping[str, Tensor]
    steps: int
    minutes: float


def learn(
    module: Learning, data: pl.LightningDataModule, options: Recipe, work: Path, checkpoint: Path | None, watch: Watch | None
) -> Learnt:
    """Run the loop to its end.

    Of several devices, each has a process that runs the whole script; only the first comes back from here.

    Args:
        module: that learns.
        data: that it learns from.
        options: the recipe.
        work: folder of logs and checkpoints.
        checkpoint: to go on from.
        watch: called after each batch.
    """
    run = trainer(options, module.FIGURE, work, watch)
    if run.strategy.root_device.type == "cpu":
        tune_malloc()
    run.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    if not run.is_global_zero:
        sys.exit(0)
    state = torch.load(work / f"{options.schedule.keep}.ckpt", map_location="cpu", weights_only=True)
    weights = {key.removeprefix("network."): value for key, value in state["state_dict"].items() if key.startswith("network.")}
    return Learnt(weights, state["global_step"], state["geoseg_spent_s"] / 60)


def take_up(work: Path, options: Recipe, *, force: bool) -> Path | None:
    """The checkpoint to go on from, if any; also writes down the recipe of this run.

    Raises:
        ResumeError: if the checkpoint belongs to another recipe.
    """
    recipe, last = work / "recipe.json", work / f"{_LAST}.ckpt"
    if last.exists() and not force:
        if _facts(options, recipe) != options.model_dump(exclude=_NO_FACTS):
            raise ResumeError(f"{work}: the checkpoint was made with another recipe; choose another folder, or start over with --force")
        return last
    work.mkdir(parents=True, exist_ok=True)
    for name in (_LAST, _BEST):
        (work / f"{name}.ckpt").unlink(missing_ok=True)
    recipe.write_text(options.model_dump_json(exclude=_NO_FACTS, indent=2), encoding="utf-8")
    return None


def _facts(options: Recipe, recipe: Path) -> dict[str, Any] | None:
    """What a recipe on disk says, also one of an earlier version that had fewer keys; None if it is of another kind."""
    try:
        table = json.loads(recipe.read_text(encoding="utf-8"))
        return type(options).model_validate(table | {"data": options.data}).model_dump(exclude=_NO_FACTS)
    except (OSError, ValueError, ValidationError):
        return None


def draft_card(options: Recipe, legend: Legend, network: Any, training_data: tuple[str, ...]) -> ModelCard:
    """The card of a model that is still to be trained: all but its scores and its hash.

    Raises:
        OptionsError: if the recipe's facts do not fit together.
    """
    model = options.model
    facts = model.model_dump(exclude={"legend", "scaling"}) | {"scaling": model.scaling, "legend": legend, "stride": network.stride}
    try:
        return ModelCard(
            **facts, parameters=sum(p.numel() for p in network.parameters()), training_data=training_data, scores={}, sha256="0" * 64
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(("model", *(str(part) for part in first["loc"])))
        raise OptionsError(f"recipe: {where}: {first['msg']}") from error


def write_weights(out: Path, weights: Mapping[str, Tensor]) -> Path:
    """Write weights in half precision beside their place in a model folder; returns the path."""
    out.mkdir(parents=True, exist_ok=True)
    fresh = out / f".{WEIGHTS_NAME}.part"
    save_file({key: _halved(value) for key, value in weights.items()}, fresh)
    fresh.chmod(0o644)
    return fresh


def settle_model(out: Path, fresh: Path, draft: ModelCard, scores: dict[str, Any]) -> ModelCard:
    """Put weights that `write_weights` wrote and their card into their places, the card last; returns the card."""
    card = draft.model_copy(update={"scores": scores, "sha256": hashlib.sha256(fresh.read_bytes()).hexdigest()})
    fresh_card = out / f".{CARD_NAME}.part"
    fresh_card.write_text(card.to_json(), encoding="utf-8")
    for path, name in ((fresh, WEIGHTS_NAME), (fresh_card, CARD_NAME)):
        settle(path, out / name)
    return card


def settle(path: Path, target: Path) -> None:
    """Move a file to its place when it is on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.replace(target)


def _halved(value: Tensor) -> Tensor:
    return (value.half() if value.is_floating_point() else value).contiguous()
