"""The loop of a training: what it does when it is killed, and how its options act."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from geoseg.card import ModelCard
from geoseg.chips import Chips
from geoseg.errors import OptionsError
from geoseg.training.data import Data, folded, next_batches
from geoseg.training.loop import Standing, share_of_rate
from geoseg.training.recipe import read_options
from geoseg.verbs.train import find_learning_rate, train
from tests.toys import toy_data, toy_recipe

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*treespec.*"),
]
ROOT = Path(__file__).parents[1]
DIES_WHILE_SAVING = """
import io, os, signal, sys, torch
from geoseg.verbs.train import train
save, turns = torch.save, []
def dying(thing, file):
    turns.append(file)
    if len(turns) < 2:
        return save(thing, file)
    whole = io.BytesIO()
    save(thing, whole)
    file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = dying
train(sys.argv[1], sys.argv[2])
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return toy_data(tmp_path / "data")


def written(recipe: dict, path: Path) -> Path:
    path.write_text(yaml.safe_dump(recipe | {"threads": 1}))
    return path


def last(out: Path, name: str = "last") -> dict:
    return torch.load(out / "training" / f"{name}.ckpt", weights_only=True)


def figures(out: Path, name: str = "miou") -> list[float]:
    """What the validations said, over all times that the run was taken up."""
    logs = sorted((out / "training" / "log").glob("*/metrics.csv"))
    return [float(row[name]) for log in logs for row in csv.DictReader(log.read_text().splitlines()) if row.get(name)]


def test_a_killed_training_goes_on_to_the_same_weights(data: Path, tmp_path: Path):
    recipe = written(toy_recipe(data, steps=30), tmp_path / "recipe.yaml")
    whole = train(recipe, tmp_path / "whole")
    assert train(recipe, tmp_path / "again").sha256 == whole.sha256
    command = [sys.executable, "-m", "geoseg.cli", "train", recipe, "--out", tmp_path / "killed", "--quiet"]
    run = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    while not (tmp_path / "killed" / "training" / "last.ckpt").exists() and run.poll() is None:
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert run.returncode == -signal.SIGKILL
    assert 0 < last(tmp_path / "killed")["global_step"] < 30
    assert train(recipe, tmp_path / "killed").sha256 == whole.sha256


def test_a_training_killed_while_it_saves_has_the_checkpoint_before(data: Path, tmp_path: Path):
    recipe = written(toy_recipe(data, steps=9), tmp_path / "recipe.yaml")
    done = subprocess.run([sys.executable, "-c", DIES_WHILE_SAVING, recipe, tmp_path / "out"], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert last(tmp_path / "out")["global_step"] == 3
    assert (tmp_path / "out" / "training" / ".last.ckpt.part").exists()
    assert train(recipe, tmp_path / "out").sha256 == train(recipe, tmp_path / "whole").sha256


def test_a_training_that_was_killed_after_its_last_step_makes_the_same_model(data: Path, tmp_path: Path):
    recipe = toy_recipe(data, steps=4)
    made = train(recipe, tmp_path / "out")
    (tmp_path / "out" / "model.json").unlink()
    again = train(recipe, tmp_path / "out")
    assert again.sha256 == made.sha256
    assert "after 4 steps" in again.scores["measured"]


def test_one_that_had_enough_stops_and_stays_stopped(data: Path, tmp_path: Path):
    recipe = toy_recipe(data, steps=90, patience=2)
    seen: list[Standing] = []
    made = train(recipe, tmp_path / "out", watch=seen.append)
    known = figures(tmp_path / "out")
    enough = [number for number in range(3, len(known) + 1) if max(known[:number]) == max(known[: number - 2])]
    assert enough[:1] == [len(known)] != [30]
    assert f"after {3 * len(known)} steps" in made.scores["measured"]
    assert [each.step for each in seen] == [*range(1, 3 * len(known) + 1)]
    assert seen[-1].share == pytest.approx(len(known) / 30)
    assert seen[-1].figure == f"miou {known[-2]:.3f}"
    assert train(recipe, tmp_path / "out", watch=seen.append).sha256 == made.sha256
    assert len(seen) == 3 * len(known)


def test_the_best_weights_are_kept(data: Path, tmp_path: Path):
    recipe = toy_recipe(data, steps=8, validate_every=2, learning_rate=0.05, decay="constant", warmup=0, keep="best", average=0.0)
    made = train(recipe, tmp_path / "out")
    known = figures(tmp_path / "out")
    assert f"after {2 * (1 + known.index(max(known)))} steps" in made.scores["measured"]
    assert made.scores["toy"]["miou"] == pytest.approx(max(known), abs=0.02)  # of half-precision weights
    assert last(tmp_path / "out")["global_step"] == 8


def test_what_goes_by_validations_goes_on_in_a_run_that_was_taken_up(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = toy_recipe(data, steps=24, validate_every=1, learning_rate=1e-12, decay="plateau", warmup=0, optimizer="sgd")
    recipe["schedule"] |= {"patience": 23, "keep": "best"}
    whole = train(recipe, tmp_path / "whole")
    chip = Chips.__getitem__

    def stops(self: Chips, index: int):
        if self.seed == 0 and self.first + index == 7:
            raise RuntimeError("power cut")
        return chip(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(Chips, "__getitem__", stops)
        with pytest.raises(RuntimeError, match="power cut"):
            train(recipe, tmp_path / "out")
    resumed = train(recipe, tmp_path / "out")
    assert resumed.sha256 == whole.sha256
    rate, best, bad = 1e-12, 0.0, 0
    known = figures(tmp_path / "out")
    assert known == figures(tmp_path / "whole")
    assert f"after {1 + known.index(max(known))} steps" in resumed.scores["measured"]
    for figure in known[:-1]:  # the last step was before the last validation
        best, bad = (figure, 0) if figure > best * 1.0001 else (best, bad + 1)
        rate, bad = (rate / 2, 0) if bad == 5 else (rate, bad)
    (optimizer,) = last(tmp_path / "out")["optimizer_states"]
    assert optimizer["param_groups"][0]["momentum"] == 0.9
    assert optimizer["param_groups"][0]["lr"] == pytest.approx(rate)
    assert rate < 1e-12


def test_a_step_may_take_several_batches_each_of_them_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chip, taken = Chips.__getitem__, []

    def noted(self: Chips, index: int):
        if self.seed == 0:
            taken.append(self.first + index)
        return chip(self, index)

    monkeypatch.setattr(Chips, "__getitem__", noted)
    made = train(toy_recipe(data, steps=5, accumulate=2), tmp_path / "out")
    assert taken == [*range(10)]
    assert "after 5 steps" in made.scores["measured"]


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 12))
def test_each_device_has_batches_of_its_own_and_none_is_left_out(ranks: int, accumulate: int, every: int, steps: int):
    recipe = toy_recipe(ROOT, steps=steps, validate_every=every, accumulate=accumulate)
    options, taken = read_options(recipe), []
    for done in range(0, steps, every):
        parts = [next_batches(options, SimpleNamespace(global_step=done, global_rank=rank, world_size=ranks)) for rank in range(ranks)]
        assert len({len(mine) for _, _, mine in parts}) == 1
        taken += [first + batch for first, _, mine in parts for batch in mine]
    assert sorted(taken) == [*range(steps * accumulate * ranks)]


@given(st.integers(1, 200), st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from(["cosine", "poly"]))
def test_the_learning_rate_is_that_of_torchs_schedulers(steps: int, warmup: float, decay: str):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = {
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
        "poly": lambda: torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9),
    }[decay]()
    for step in range(steps + 1):
        progress = min(1.0, warmup + (1 - warmup) * step / steps)
        assert share_of_rate(decay, progress, warmup) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-6)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("decay", ["cosine", "poly", "plateau", "constant"])
def test_the_learning_rate_rises_first(decay: str):
    rates = [share_of_rate(decay, progress / 100, 0.1) for progress in range(101)]
    assert rates[0] > 0
    assert rates[:11] == sorted(rates[:11])
    assert max(rates) == rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)


@given(st.sets(st.tuples(st.sampled_from("ab"), st.text("xyz", max_size=3)), min_size=2), st.integers(2, 6), st.integers(0, 99))
def test_folds_part_the_images(images: set, folds: int, seed: int):
    if len(images) < folds:
        with pytest.raises(OptionsError, match="ask for fewer folds"):
            folded(images, folds, seed)
        return
    fold = folded(images, folds, seed)
    assert fold.keys() == images
    sizes = [list(fold.values()).count(number) for number in range(1, folds + 1)]
    assert sum(sizes) == len(images)
    assert max(sizes) - min(sizes) <= 1
    assert folded(sorted(images, reverse=True), folds, seed) == fold


def test_a_fold_is_held_out_and_never_learnt_from(tmp_path: Path):
    data = toy_data(tmp_path, "abcdef")
    for name in "abcde":  # all images of the part ``train``; each is known by its height
        for part in ("images", "labels"):
            with Image.open(tmp_path / "toy" / part / f"{name}.png") as file:
                file.crop((0, 0, 72, 60 + ord(name) - ord("a"))).save(tmp_path / "toy" / part / f"{name}.png")
    held = []
    for fold in (1, 2):
        options = read_options(toy_recipe(data) | {"folds": 2, "sources": [{"set": "toy"}, {"set": "toy", "keep": ["a"]}]}, fold=fold)
        source = Data(options, options.model.classes(), 8)
        assert list(source.held) == [f"fold_{fold}_of_2", "toy"]
        held.append({image.name for image in source.held[f"fold_{fold}_of_2"]})
        learnt = {chr(ord("a") + frame.size[1] - 60) for pool in source.pools for frame in pool.frames}
        assert learnt == set("abcde") - held[-1]
    assert held[0] | held[1] == set("abcde")
    assert not held[0] & held[1]
    with pytest.raises(OptionsError, match="say with --fold which of 1 to 2"):
        read_options(toy_recipe(data) | {"folds": 2})
    with pytest.raises(OptionsError, match="validation is empty"):
        read_options(toy_recipe(data) | {"validation": []})


def test_a_learning_rate_is_found_and_nothing_is_trained(data: Path, tmp_path: Path):
    rate, curve = find_learning_rate(toy_recipe(data), tmp_path / "out")
    assert 1e-6 < rate < 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["learning_rate.png"] == [curve.name]
    with Image.open(curve) as picture:
        assert len(picture.getcolors(1 << 16)) > 5


@pytest.mark.slow
def test_two_processes_share_each_step(data: Path, tmp_path: Path):
    """Both learn, one of them writes and speaks."""
    recipe = written(toy_recipe(data, steps=4) | {"devices": 2}, tmp_path / "recipe.yaml")
    command = [sys.executable, "-m", "geoseg.cli", "train", recipe, "--out", tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "after 4 steps" in ModelCard.read(tmp_path / "out")[0].scores["measured"]
    assert done.stderr.count("step 4,") == 1
