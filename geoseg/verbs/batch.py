"""From many scenes to many maps; one bad scene stops nothing."""

from __future__ import annotations

import csv
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from glob import glob
from pathlib import Path
from typing import Any

from geoseg import stac
from geoseg.cluster import Cluster, run
from geoseg.engine import Options
from geoseg.errors import BusyError, GeosegError, OptionsError, OutputError
from geoseg.legend import Legend
from geoseg.manifest import Facts, identity
from geoseg.models import locate, read
from geoseg.mosaic import write_vrt
from geoseg.networks import maskrcnn
from geoseg.polygons import Shaping
from geoseg.scene import Policy
from geoseg.vectors import format_of
from geoseg.verbs.predict import predict
from geoseg.verbs.vectorize import vectorize

TABLE = "geoseg-batch.sqlite"
STATES = ("waiting", "running", "done", "failed", "quarantined")
_PATIENCE_S = 3600.0
_DEATHS = 3  # of the process that was at a scene, before it is left alone
_SCHEMA = """
CREATE TABLE IF NOT EXISTS batch (identity TEXT NOT NULL, settings TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS mosaics (path TEXT PRIMARY KEY, identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS scenes (
    scene TEXT PRIMARY KEY, stem TEXT NOT NULL UNIQUE, state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    seconds REAL, megapixels REAL, bytes INTEGER, reason TEXT, worker TEXT, changed TEXT)
"""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is the same for all scenes of a batch; see `predict`."""

    model: str = "default"
    bands: tuple[int, ...] | None = None
    options: Options = field(default_factory=Options)
    device: str = "auto"
    batch: int | None = None
    block: int | None = None
    confidence: bool = False
    vectors: bool = True
    shaping: Shaping = field(default_factory=Shaping)
    kind: str = "gpkg"
    single_layer: bool = False
    quicklook: bool = True
    policy: Policy = field(default_factory=Policy)


@dataclass(frozen=True, slots=True)
class _Job:
    """One scene: all that a worker needs."""

    scene: str
    out: str
    settings: Settings
    force: bool


def batch(
    scenes: Iterable[str | Path],
    *,
    out: str | Path,
    settings: Settings | None = None,
    cluster: Cluster | None = None,
    mosaic: str | Path | None = None,
    retry: bool = False,
    force: bool = False,
    watch: Callable[[Counter[str], float], None] = lambda *_: None,
) -> Counter[str]:
    """Predict many scenes into one folder, and keep a table of how each went.

    The table is ``out/geoseg-batch.sqlite``. Given again, the same command does what is left: finished scenes are kept,
    scenes that were refused or failed too, with their reason, until ``retry``. A scene that kills the process at work three
    times is quarantined. Reading or writing that fails is tried three times.

    Args:
        scenes: GeoTIFFs; their names without suffix have to differ.
        out: folder of the results.
        settings: of the prediction, the same for all.
        cluster: where; None for one after the other here.
        mosaic: file for the polygons of all finished scenes as one map, joined where scenes touch; a later scene lies above an
            earlier one. Beside the scenes' results, ``NAME_classes.vrt`` (and ``NAME_confidence.vrt``) show their rasters as one.
        retry: try failed and quarantined scenes again.
        force: make everything anew.
        watch: called whenever a scene has ended, with the number of scenes in each state, and the million pixels that were
            predicted since the beginning of the call.

    Returns:
        Number of scenes in each state.

    Raises:
        OptionsError: if two scenes have one name, the folder holds a batch with other settings, or a mosaic of instances is wanted.
        GeoreferenceError: if a mosaic is wanted of scenes that are not on one grid; they are finished.
        OutputError: if the table or the mosaic cannot be written.
    """
    settings, folder = settings or Settings(), Path(out)
    paths = _distinct(scenes)
    card, _ = read(locate(settings.model))
    if mosaic is not None:
        if card.architecture in maskrcnn.names():
            raise OptionsError(
                f"--mosaic: model {card.name!r} finds instances ({card.architecture}), and makes no class rasters; leave it out"
            )
        format_of(Path(mosaic))
    with _table(folder, settings, force) as table:
        if mosaic is not None and table.mosaic(Path(mosaic)) is None and Path(mosaic).exists() and not force:
            raise OutputError(f"{mosaic}: exists already, and this batch did not make it; use --force or choose another --mosaic")
        table.add(paths)
        todo = table.todo(paths, retry=retry, force=force)
        predicted = 0.0
        watch(table.count(), predicted)
        afar = replace(settings, model=str(locate(settings.model).absolute()))  # a worker may have another working folder
        jobs = (
            _Job(scene, str(folder.absolute()), afar, force) for scene in table.begun(todo, alone=cluster is None or cluster.kind == "here")
        )
        for job, result in run(_one, jobs, cluster):
            table.note(job.scene, result)
            predicted += 0.0 if isinstance(result, Exception) else result["megapixels"]
            watch(table.count(), predicted)
        if mosaic is not None:
            _join(table, folder, paths, Path(mosaic), card.legend, settings, force)
        return table.count()


def status(out: str | Path) -> list[dict[str, Any]]:
    """The rows of a batch's table: ``scene``, ``state``, ``seconds``, ``megapixels``, ``bytes``, ``reason`` and more.

    Raises:
        OptionsError: if there is none.
    """
    path = Path(out) / TABLE
    if not path.is_file():
        raise OptionsError(f"{path}: missing, no batch was begun here; give the --out of a batch")
    try:
        with closing(sqlite3.connect(path)) as file:
            file.row_factory = sqlite3.Row
            return [dict(row) for row in file.execute("SELECT * FROM scenes ORDER BY rowid")]
    except sqlite3.DatabaseError as error:
        raise OptionsError(f"{path}: is no table of a batch, or not yet ({error}); give the --out of a batch") from error


def listed(path: str | Path, asset: str | None = None) -> list[Path]:
    """Scenes of a list: a CSV file with a column ``scene``, relative to the file, or (``.json``, ``.geojson``) STAC items.

    Args:
        path: of the list.
        asset: key of the STAC items' asset; None for their only GeoTIFF, see `geoseg.stac.scenes`.

    Raises:
        OptionsError: if it cannot be read, or does not say which file is the scene.
    """
    if Path(path).suffix.lower() in (".json", ".geojson"):
        return stac.scenes(path, asset)
    if asset is not None:
        raise OptionsError(f"{path}: asset {asset!r} was named, but this is no list of STAC items; give a .json file")
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OptionsError(f"{path}: no readable CSV file ({error})") from error
    if not rows or not rows[0].get("scene"):
        raise OptionsError(f"{path}: has no column 'scene' with a path in each row")
    return [Path(path).parent / row["scene"] for row in rows]


def matched(pattern: str) -> list[Path]:
    """Files that a pattern names, such as ``flight/**/*.tif``, in order.

    Raises:
        OptionsError: if there is none.
    """
    paths = sorted(path for path in map(Path, glob(pattern, recursive=True)) if path.is_file())  # noqa: PTH207 of any folder
    if not paths:
        raise OptionsError(f"{pattern!r} names no file here ({Path().absolute()}); mend the pattern, and quote it")
    return paths


def _distinct(scenes: Iterable[str | Path]) -> list[Path]:
    """The scenes, each once.

    Raises:
        OptionsError: if there is none, or the results of two would have one name.
    """
    paths = list(dict.fromkeys(Path(scene).absolute() for scene in scenes))
    named: dict[str, Path] = {}
    for path in paths:
        other = named.setdefault(path.stem, path)
        if other != path:
            raise OptionsError(f"{other} and {path}: their results would have one name; rename one, or make two batches")
    if not paths:
        raise OptionsError("no scene was given; name some, or --manifest or --glob that find some")
    return paths


def _one(job: _Job) -> Facts:
    """Predict one scene, when nobody else does any more: a worker whose client was killed goes on to the end of its scene."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return _alone(job)
        except BusyError:
            if time.monotonic() > until:
                raise
            time.sleep(1.0)


def _alone(job: _Job) -> Facts:
    """Predict one scene; what the table wants to know of it."""
    began, use = time.monotonic(), job.settings
    manifest = predict(
        job.scene,
        use.model,
        out=job.out,
        bands=use.bands,
        options=use.options,
        device=use.device,
        batch=use.batch,
        block=use.block,
        confidence=use.confidence,
        vectors=use.vectors,
        shaping=use.shaping,
        kind=use.kind,
        single_layer=use.single_layer,
        quicklook=use.quicklook,
        force=job.force,
        policy=use.policy,
    )
    return {
        "seconds": round(time.monotonic() - began, 3),
        "megapixels": manifest["scene"]["height"] * manifest["scene"]["width"] / 1e6,
        "bytes": sum(manifest["outputs"].values()),
        "worker": f"{manifest['device']['name']}",
    }


def _join(table: _Table, folder: Path, scenes: Sequence[Path], target: Path, legend: Legend, settings: Settings, force: bool) -> None:
    """Make one map of all finished scenes, if it is not there."""
    stems = [path.stem for path in scenes if table.state(path) == "done"]
    if not stems:
        return
    made_of = [(folder / f"{stem}.manifest.json").read_text(encoding="utf-8") for stem in stems]
    state = identity({"scenes": [json.loads(text)["identity"] for text in made_of], "legend": legend.model_dump(mode="json")})
    before = table.mosaic(target)
    if before == state and target.is_file() and not force:
        return
    rasters = {}
    for kind in ("classes", *(["confidence"] if settings.confidence else [])):
        rasters[kind] = folder / f"{target.stem}_{kind}.vrt"
        write_vrt([folder / f"{stem}_{kind}.tif" for stem in stems], rasters[kind], legend if kind == "classes" else None)
    vectorize(
        rasters["classes"],
        target,
        legend=legend,
        confidence=rasters.get("confidence"),
        shaping=settings.shaping,
        single_layer=settings.single_layer,
        force=force or before is not None,
        policy=replace(settings.policy, allow_vrt=True),
    )
    table.joined(target, state)


class _Table:
    """How each scene of a batch is. Only the process that gives the work out writes here."""

    def __init__(self, file: sqlite3.Connection, folder: Path) -> None:
        self._file, self._folder = file, folder

    def add(self, scenes: Sequence[Path]) -> None:
        """Know more scenes."""
        rows = [(str(path), path.stem) for path in scenes]
        self._file.executemany("INSERT INTO scenes (scene, stem, state) VALUES (?, ?, 'waiting') ON CONFLICT (scene) DO NOTHING", rows)

    def todo(self, scenes: Sequence[Path], *, retry: bool, force: bool) -> list[str]:
        """Those of the scenes that are to be done, in their order."""
        left = []
        for path in scenes:
            state, attempts = self._file.execute("SELECT state, attempts FROM scenes WHERE scene = ?", (str(path),)).fetchone()
            if state == "running" and attempts >= _DEATHS:
                state = "quarantined"
                self._set(str(path), state, reason=f"the process that was at it ended {attempts} times without a word; out of memory?")
            kept = {"done": self._complete(path.stem), "failed": not retry, "quarantined": not retry}.get(state, False)
            if force or not kept:
                self._set(str(path), "waiting")
                left.append(str(path))
        return left

    def begun(self, scenes: Iterable[str], *, alone: bool) -> Iterator[str]:
        """Mark each scene as begun when it is taken; one that is done ``alone`` counts as an attempt."""
        for scene in scenes:
            self._set(scene, "running", attempts="attempts + 1" if alone else "attempts")
            yield scene

    def note(self, scene: str, result: Facts | Exception) -> None:
        """Remember how a scene ended."""
        if not isinstance(result, Exception):
            self._set(scene, "done", attempts="0", **result)
            return
        died = type(result).__name__ == "KilledWorker"
        reason = str(result) if isinstance(result, GeosegError) else f"{type(result).__name__}: {result}"
        self._set(scene, "quarantined" if died else "failed", attempts="0", reason=" ".join(reason.split()))

    def state(self, scene: Path) -> str:
        """How a scene is."""
        (state,) = self._file.execute("SELECT state FROM scenes WHERE scene = ?", (str(scene),)).fetchone()
        return str(state)

    def mosaic(self, target: Path) -> str | None:
        """What a mosaic was made of; None if it is not ours."""
        found = self._file.execute("SELECT identity FROM mosaics WHERE path = ?", (str(target.absolute()),)).fetchone()
        return found and str(found[0])

    def joined(self, target: Path, state: str) -> None:
        """Remember what a mosaic was made of."""
        self._file.execute("INSERT OR REPLACE INTO mosaics VALUES (?, ?)", (str(target.absolute()), state))

    def count(self) -> Counter[str]:
        """Number of scenes in each state."""
        return Counter(dict(self._file.execute("SELECT state, count(*) FROM scenes GROUP BY state")))

    def _set(self, scene: str, state: str, *, attempts: str = "attempts", **facts: object) -> None:
        known = {"seconds": None, "megapixels": None, "bytes": None, "reason": None, "worker": None} | facts
        columns = ", ".join(f"{name} = :{name}" for name in known)
        self._file.execute(
            f"UPDATE scenes SET state = :state, attempts = {attempts}, changed = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), {columns} "
            "WHERE scene = :scene",
            {"state": state, "scene": scene, **known},
        )

    def _complete(self, stem: str) -> bool:
        """Whether all results of a scene are there, as large as its manifest says."""
        try:
            outputs = json.loads((self._folder / f"{stem}.manifest.json").read_text(encoding="utf-8"))["outputs"]
            return all((self._folder / name).stat().st_size == size for name, size in outputs.items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False


@contextmanager
def _table(folder: Path, settings: Settings, force: bool) -> Iterator[_Table]:
    """Open the table of a batch, or begin one.

    Raises:
        OptionsError: if the folder holds a batch with other settings.
        OutputError: if the table cannot be written.
    """
    facts = json.loads(json.dumps(asdict(settings) | {"model": str(locate(settings.model))}, default=str))
    path = folder / TABLE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as file:
            file.executescript(_SCHEMA)
            known = file.execute("SELECT identity, settings FROM batch").fetchone()
            if known and known[0] != identity(facts) and not force:
                before = json.loads(known[1])
                changed = ", ".join(key for key in facts if before.get(key) != facts[key])
                raise OptionsError(f"{path}: a batch with other settings was begun here (other {changed}); use --force or another --out")
            file.execute("DELETE FROM batch")
            file.execute("INSERT INTO batch VALUES (?, ?)", (identity(facts), json.dumps(facts)))
            yield _Table(file, folder)
    except (sqlite3.Error, OSError) as error:
        raise OutputError(f"{path}: cannot be written ({error}); free space, or choose another --out") from error
