"""Scores of several runs beside each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geoseg.errors import OptionsError
from geoseg.manifest import Facts
from geoseg.policy import printable

_BY_CLASS = {True: "f1", False: "iou"}  # whether of polygons


def compare(runs: Sequence[str | Path]) -> Facts:
    """Put what `evaluate` wrote into one table.

    Args:
        runs: JSON files of `evaluate`, under one protocol.

    Returns:
        JSON-able: ``protocol``, ``runs`` (names), ``rows`` (``measure``, ``values`` and ``intervals``, one for each run, None where there
        is none; measures over all, then IoU of each class, or F1 for polygons), ``warnings``.

    Raises:
        OptionsError: if a file is none of `evaluate`, or the protocols differ.
    """
    paths = [Path(run) for run in runs]
    found = [_read(path) for path in paths]
    if not found:
        raise OptionsError("no runs were given; expected the JSON files of geoseg evaluate")
    for key in ("protocol", "iou", "boundary_px"):
        seen = {path: facts.get(key) for path, facts in zip(paths, found, strict=True)}
        if len(set(seen.values())) > 1:
            words = ", ".join(f"{printable(str(path))} has {value}" for path, value in seen.items())
            raise OptionsError(f"runs differ in {key}: {words}; evaluate all in one way")
    of_class = _BY_CLASS[found[0]["confusion"] is None]
    names = list(dict.fromkeys(name for facts in found for name in facts["classes"]))
    measures = dict.fromkeys(key for facts in found for key in facts["measures"] if key != "mean_dice")  # which is the mean F1
    rows = [_row(found, "measures", key, key) for key in measures]
    rows += [_row(found, "classes", name, f"{of_class} {name}", of_class) for name in names]
    scored = {(facts.get("labelled_pixels"), len(facts["scenes"])) for facts in found}
    notes = ["the runs were not scored on the same labels: their numbers of labelled pixels or scenes differ"] if len(scored) > 1 else []
    return {
        "protocol": found[0]["protocol"],
        "protocol_says": found[0]["protocol_says"],
        "runs": _names(paths),
        "rows": [row for row in rows if any(value is not None for value in row["values"])],
        "warnings": notes,
    }


def _read(path: Path) -> Facts:
    name = printable(str(path))
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionsError(f"{name}: not a readable JSON file ({printable(str(error))}); expected one of geoseg evaluate --json") from error
    if not isinstance(facts, dict) or not {"protocol", "protocol_says", "measures", "classes", "intervals", "scenes"} <= facts.keys():
        raise OptionsError(f"{name}: is not what geoseg evaluate --json writes; evaluate the run anew")
    return facts


def _names(paths: Sequence[Path]) -> list[str]:
    """The stems of the files if they differ, else the paths."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]


def _row(found: Sequence[Facts], group: str, key: str, title: str, figure: str | None = None) -> Facts:
    """A figure of each run, with its interval."""

    def look(table: Any) -> Any:
        value = (table or {}).get(group, {}).get(key)
        return value if figure is None or value is None else value.get(figure)

    return {
        "measure": title,
        "values": [look(facts) for facts in found],
        "intervals": [look(facts["intervals"]) for facts in found],
    }
