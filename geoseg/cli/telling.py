"""Progress and results, told on a terminal."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any, Self

import typer

if TYPE_CHECKING:
    from collections import Counter

    import rich.progress

    from geoseg.training.loop import Standing
    from geoseg.verbs.predict import Progress


class Watcher:
    """A bar on a terminal, a plain line every few seconds elsewhere, nothing if silent; with what geoseg's log says above it."""

    EVERY_S = 5.0

    def __init__(self, *, silent: bool) -> None:
        self._silent, self._bar = silent, _bar() if sys.stderr.isatty() and not silent else None
        self._began, self._told, self._stage = time.monotonic(), 0.0, ""
        self._before: int | None = None
        self._log = logging.Handler(logging.INFO)
        self._log.emit = lambda record: self.say(record.getMessage())  # type: ignore[method-assign]

    def __enter__(self) -> Self:
        if not self._silent:
            logging.getLogger("geoseg").addHandler(self._log)
            logging.getLogger("geoseg").setLevel(logging.INFO)
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task("starting", total=None, rate="")
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("geoseg").removeHandler(self._log)
        if self._bar is not None:
            self._bar.stop()

    def say(self, words: str) -> None:
        """Print a line of its own."""
        if self._bar is not None:
            self._bar.console.print(f"geoseg: {words}", markup=False, highlight=False)
        else:
            typer.echo(f"geoseg: {words}", err=True)

    def __call__(self, progress: Progress) -> None:
        """Show how far a prediction is, and in its first stage how fast."""
        seconds = self._in_stage(progress.stage)
        rate = f"{progress.done / seconds:.1f} tiles/s, {progress.mpx / seconds:.2f} Mpx/s"
        timed = progress.stage == "predict" and progress.done
        self.show(progress.stage, progress.done, progress.total, rate if timed else "", seconds / progress.done if timed else None)

    def scenes(self, count: Counter[str], mpx: float) -> None:
        """Show how far a batch is, and how fast since it began this time."""
        seconds, ended = self._in_stage("scenes"), count.total() - count["waiting"] - count["running"]
        self._before = ended if self._before is None else self._before
        states = [f"{count[state]} {state}" for state in ("running", "failed", "quarantined") if count[state]]
        fresh = ended - self._before
        rate = ", ".join([*states, *([f"{mpx / seconds:.2f} Mpx/s"] if mpx else [])])
        self.show("scenes", ended, count.total(), rate, seconds / fresh if fresh else None)

    def training(self, standing: Standing) -> None:
        """Show on a terminal how far a training is; elsewhere its log says enough."""
        if self._bar is not None:
            words = [f"step {standing.step}", f"{standing.steps_s:.1f} steps/s", *([standing.figure] if standing.figure else [])]
            self._bar.update(self._bar.task_ids[0], description="train", completed=standing.share, total=1, rate=", ".join(words))

    def show(self, stage: str, done: int, total: int, rate: str = "", each_s: float | None = None) -> None:
        """Show how far a stage is; with the seconds that each step takes, how long it is to go, too."""
        self._in_stage(stage)
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=stage, completed=done, total=total, rate=rate)
        elif not self._silent and now - self._told >= self.EVERY_S:
            self._told = now
            left = "" if each_s is None else f", {each_s * (total - done):.0f} s left"
            typer.echo(f"geoseg: {stage} {done} of {total}{f', {rate}' if rate else ''}{left}", err=True)

    def _in_stage(self, stage: str) -> float:
        """Seconds since the stage began, which may be now."""
        now = time.monotonic()
        if stage != self._stage:
            self._began, self._stage, self._told = now, stage, 0.0
        return max(now - self._began, 1e-9)


def _bar() -> rich.progress.Progress:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    share = TextColumn("{task.percentage:>3.0f} %")
    columns = (TextColumn("{task.description}"), BarColumn(), share, TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    return Bar(*columns, console=Console(stderr=True), transient=True)


def table(facts: dict[str, Any], as_json: bool) -> None:
    """Facts, a line each."""
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        typer.echo(f"{key.replace('_', ' '):<{width}}  {printable(_words(value))}")


def columns(rows: list[list[str]]) -> None:
    """Lines of text in columns."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))] if cells else []
    for row in cells:
        typer.echo(
            "  ".join([row[0].ljust(widths[0]), *(cell.ljust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]).rstrip()
        )


def _words(value: object) -> str:
    """A fact as people read it."""
    if isinstance(value, dict):
        return " ".join(f"{key} {_words(part)}" for key, part in value.items() if part is not None)
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "none"
    return "none" if value in (None, "") else str(value)


def printable(text: str) -> str:
    """A text as one line without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
