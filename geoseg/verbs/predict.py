"""From a scene to a class raster and polygons."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from odc.geo.geobox import GeoBox

from geoseg import __version__, cog, report
from geoseg.blocks import BlockMosaic, write_block, write_views
from geoseg.cluster import Cluster
from geoseg.cluster import run as run_on
from geoseg.detector import Detector
from geoseg.engine import ALIGN, BLOCK, Options, Plan, Source, detect_block, make_plan, predict_block, write_behind
from geoseg.errors import ClusterError, GeosegError, OutputError
from geoseg.features import Features
from geoseg.legend import NODATA
from geoseg.manifest import Facts, Run, tags
from geoseg.models import locate
from geoseg.models import read as read_model
from geoseg.networks import maskrcnn
from geoseg.polygons import Shaping, polygonize
from geoseg.polygons.measure import class_areas
from geoseg.region import Region
from geoseg.scene import Policy, Scene
from geoseg.segmenter import Augmentation, Precision, Segmenter, give_back_memory
from geoseg.vectors import FORMATS, format_of
from geoseg.vectors import write as write_vectors
from geoseg.verbs import instances
from geoseg.window import Window

_BLOCKS_PER_WORKER = 4


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, told to whoever watches.

    Attributes:
        stage: ``predict``, ``raster``, ``polygons`` or ``quicklook``.
        done: tiles answered (in ``predict``) or steps done.
        total: of the same.
        mpx: million scene pixels that those stand for.
    """

    stage: str
    done: int
    total: int
    mpx: float


def predict(
    scene: str | Path,
    model: str | Path = "default",
    *,
    out: str | Path | None = None,
    bands: tuple[int, ...] | None = None,
    bbox: tuple[float, float, float, float] | None = None,
    aoi: str | Path | None = None,
    options: Options | None = None,
    device: str = "auto",
    batch: int | None = None,
    compile: bool = False,  # noqa: A002 the word of torch
    block: int | None = None,
    cluster: Cluster | None = None,
    confidence: bool = False,
    vectors: bool = True,
    shaping: Shaping | None = None,
    kind: str = "gpkg",
    single_layer: bool = False,
    quicklook: bool = True,
    force: bool = False,
    policy: Policy | None = None,
    watch: Callable[[Progress], None] = lambda _: None,
) -> Facts:
    """Predict a scene: class raster, polygons, quicklook and manifest.

    Writes ``STEM_classes.tif`` (COG), ``STEM_polygons.gpkg`` (or another format), ``STEM_quicklook.png`` and, last, ``STEM.manifest.json``.
    A killed run is taken up where it was by calling this again; a finished one is left as it is.

    A model whose card names a Mask R-CNN finds instances: the polygons are one for each, with its score as confidence, and there
    is no class raster; see ``instances.merge`` for how those that several tiles show become one.

    Args:
        scene: GeoTIFF.
        model: name of a known model, its folder, or an ONNX file (``geoseg.deepness``).
        out: folder of the results; None for the scene's own.
        bands: 1-based band numbers of the file in the model's order; None to find them by name.
        bbox: xmin, ymin, xmax, ymax in the scene's CRS: the part that is wanted. The answer there is that of the whole scene.
        aoi: vector file of polygons: only pixels whose centre lies in them.
        options: what else decides the result.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        batch: most tiles of a forward pass; None for what fits.
        compile: use ``torch.compile``.
        block: largest side of a block, pixels; what a killed run does again at most. The result does not depend on it. None
            for ``engine.BLOCK``, or on a cluster for some blocks a worker.
        cluster: whose workers predict the blocks; None for this process. They have to see the files under the same paths, and to
            compute as this process would (``device``, ``options.precision``).
        confidence: also write ``STEM_confidence.tif``.
        vectors: write the polygons.
        shaping: how their outlines are made; None for those of the pixels.
        kind: format of the polygons, one of ``vectors.FORMATS``.
        single_layer: put all classes into one layer of the GeoPackage.
        quicklook: write the picture.
        force: forget earlier work and replace earlier results.
        policy: which files may be opened.
        watch: called now and then.

    Returns:
        The manifest. ``manifest["already_done"]`` says whether this run had been finished before.

    Raises:
        GeosegError: one of its kinds, when anything is not as it must be; nothing half-written is left.
    """
    started = time.monotonic()
    options = options or Options()
    work = prepare(scene, model, bands=bands, bbox=bbox, aoi=aoi, options=options, device=device, compile=compile, policy=policy)
    shaping = shaping or Shaping()
    shaping.check(work.segmenter.card.legend)
    drawing = asdict(shaping) | {
        "regularize": list(shaping.regularize),
        "split": list(shaping.split),
        "suffix": FORMATS[kind][0],
        "single_layer": single_layer,
    }
    outputs = {"polygons": drawing if vectors else None, "quicklook": quicklook}
    if isinstance(work.segmenter, Detector):
        instances.check(work.segmenter.card, work.plan, options or Options(), shaping, confidence=confidence, compiled=compile)
    else:
        outputs |= {"confidence": confidence, "scores": work.plan.scores}
    path = Path(scene)
    place, suffix = Path(out) if out is not None else path.parent, ".npz" if isinstance(work.segmenter, Detector) else ".tif"
    run = Run(place, path.stem, {**work.facts, "outputs": outputs}, force=force, suffix=suffix)
    if before := run.finished():
        return {**before, "already_done": True}
    with run:
        if before := run.finished():  # by another process, while we came to hold the folder
            return {**before, "already_done": True}
        run.check_clear(_names(run.stem, outputs))
        _check_room(run.work, work.plan)
        cores = work.plan.cores(block or _block_side(work.plan, cluster))
        todo = [core for core in cores if not run.block(core).exists()]
        seconds = {"prepare": time.monotonic() - started}
        if cluster is None or cluster.kind == "here":
            _predict_here(run, work, todo, batch, watch)
        else:
            places = (_absolute(scene), _absolute(locate(model)), None if aoi is None else _absolute(aoi))
            order = _Order(*places, bands, bbox, options, device, compile, policy, batch)
            _predict_on(cluster, order, run, work, todo, watch)
        seconds["predict"] = time.monotonic() - started - seconds["prepare"]
        products = (instances.Products if isinstance(work.segmenter, Detector) else _Products)(run, work, cores, shaping)
        manifest = {
            **products.write(seconds, watch),
            "scene": {**work.scene.facts(), "path": str(path)},
            "model": run.facts["model"],
            "blocks": {"total": len(cores), "taken_up": len(cores) - len(todo)},
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "warnings": [*work.scene.warnings, *products.warnings],
            "device": {"name": str(work.segmenter.device), "batch": work.segmenter.batch, "torch": torch.__version__},
        }
        return {**run.publish(products.names, manifest), "already_done": False}


@dataclass(frozen=True)
class Work:
    """What a prediction needs, described and loaded.

    Attributes:
        scene: the pixels.
        plan: how they are predicted.
        segmenter: the model.
    """

    scene: Scene
    plan: Plan
    segmenter: Segmenter
    _options: Options
    _compiled: bool

    @property
    def facts(self) -> Facts:
        """Everything that decides the result, JSON-able."""
        card, tiling = self.segmenter.card, self.plan.tiling
        chosen = {"tile": tiling.tile, "overlap": tiling.overlap, "precision": self.segmenter.precision}
        return {
            "geoseg": __version__,
            "scene": {"sha256": self.scene.sha256(), "bands": list(self.scene.bands)},
            "model": {"name": card.name, "version": card.version, "card_sha256": card.hash, "weights_sha256": card.sha256},
            "options": {**asdict(self._options), **chosen},
            "region": self.plan.region.facts,
            "seen_shape": list(self.plan.seen.shape),
            "stretch": None if self.plan.stretch is None else asdict(self.plan.stretch),
            "device": {"kind": self.segmenter.device.type, "compiled": self._compiled},
        }


def prepare(
    scene: str | Path,
    model: str | Path,
    *,
    bands: tuple[int, ...] | None = None,
    bbox: tuple[float, float, float, float] | None = None,
    aoi: str | Path | None = None,
    options: Options,
    device: str = "auto",
    compile: bool = False,  # noqa: A002 the word of torch
    policy: Policy | None = None,
) -> Work:
    """Describe the scene, plan its prediction and load the model; for the arguments see ``predict``.

    Raises:
        GeosegError: where scene, model and options do not fit together.
    """
    folder = locate(model)
    card, _ = read_model(folder)
    described = Scene.describe(scene, bands=card.bands, indexes=bands, policy=policy or Policy())
    region = Region.of(described.grid, bbox, None if aoi is None else Path(aoi))
    stretch = None if described.dtype == card.scaling.dtype else described.stretch(card.scaling.percentiles)
    plan = make_plan(described, card, options, pixel_m=described.pixel_m, stretch=stretch, region=region)
    if card.architecture in maskrcnn.names():
        plan = replace(plan, scene=plan.seen, region=Region.of(_grid(plan.seen), bbox, None if aoi is None else Path(aoi)))
    segmenter = _loaded(folder, card.hash, card.architecture, device, options.precision, options.tta, compile)
    return Work(described, plan, segmenter, options, compile)


def _grid(source: Source) -> GeoBox:
    assert isinstance(source, Scene)  # made from one
    return source.grid


@lru_cache(maxsize=1)
def _loaded(
    folder: Path,
    card_hash: str,  # noqa: ARG001 a key
    architecture: str,
    device: str,
    precision: Precision,
    tta: Augmentation,
    compiled: bool,
) -> Segmenter:
    """The model, loaded once however many scenes follow each other in a process."""
    kind = Detector if architecture in maskrcnn.names() else Segmenter
    return kind.load(folder, device=device, precision=precision, tta=tta, compile=compiled)


def _names(stem: str, outputs: Facts) -> list[str]:
    """File names of a run's results."""
    polygons = outputs["polygons"]
    wanted = [
        ("classes.tif", "confidence" in outputs),
        ("classes.tif.aux.xml", "confidence" in outputs),
        ("confidence.tif", outputs.get("confidence", False)),
        ("scores.tif", outputs.get("scores", False)),
        (f"polygons{polygons['suffix']}" if polygons else "", bool(polygons)),
        ("quicklook.png", outputs["quicklook"]),
    ]
    return [f"{stem}_{name}" for name, on in wanted if on]


def _finite(area: float) -> float | None:
    """Rounded, or None where the area is not known."""
    return round(area, 3) if math.isfinite(area) else None


def disk_bytes(plan: Plan) -> int:
    """About what work and results of a plan take on disk: a byte a pixel, and one more for each four classes of scores."""
    layers = plan.layers(8) - 2
    return 4 * 2**20 + plan.region.window.area * (1 + layers // 4)


def _check_room(folder: Path, plan: Plan) -> None:
    """Refuse at once when the disk cannot hold the result.

    Raises:
        OutputError: if so.
    """
    free, need = shutil.disk_usage(folder).free, disk_bytes(plan)
    if free < need:
        raise OutputError(
            f"{folder.parent}: the disk is full: {free / 1e6:,.1f} MB free, about {need / 1e6:,.1f} MB needed; "
            "free some space or choose another --out"
        )


def _predict_here(run: Run, work: Work, todo: list[Window], batch: int | None, watch: Callable[[Progress], None]) -> None:
    """Predict the blocks that are not done yet, one after the other."""
    counts = {core: len(work.plan.tiles(core)) for core in todo}
    total, done, area = sum(counts.values()), 0, sum(core.area for core in todo) / 1e6

    def tick(tiles: int) -> None:
        nonlocal done
        done += tiles
        watch(Progress("predict", done, total, area * done / total))

    watch(Progress("predict", 0, total, 0))
    if todo:
        work.segmenter.prepare(work.plan.tiles(todo[0])[0].seen.shape, batch)
    for core in todo:
        before = done
        _predict_block(work, core, run.block(core), tick)
        tick(counts[core] - (done - before))


def _predict_block(work: Work, core: Window, path: Path, tick: Callable[[int], None] = lambda _: None) -> None:
    """Predict a block and write it; it is there whole or not at all."""
    if isinstance(work.segmenter, Detector):
        write_views(path, detect_block(work.plan, core, work.segmenter, tick))
        return
    write = partial(write_block, path, core, layers=work.plan.layers(len(work.segmenter.card.legend)))
    write_behind(write, predict_block(work.plan, core, work.segmenter, tick))
    give_back_memory()


@dataclass(frozen=True, slots=True)
class _Order:
    """The arguments of `prepare`: what a worker has to know to plan the same prediction."""

    scene: str
    model: str
    aoi: str | None
    bands: tuple[int, ...] | None
    bbox: tuple[float, float, float, float] | None
    options: Options
    device: str
    compiled: bool
    policy: Policy | None
    batch: int | None


@lru_cache(maxsize=1)
def _prepared(order: _Order) -> Work:
    """Plan and model, once a process, however many blocks of a scene follow each other."""
    chosen = {"bands": order.bands, "bbox": order.bbox, "aoi": order.aoi, "options": order.options}
    work = prepare(order.scene, order.model, **chosen, device=order.device, compile=order.compiled, policy=order.policy)  # type: ignore[arg-type]
    work.segmenter.prepare(work.plan.tiles(work.plan.region.window)[0].seen.shape, order.batch)
    return work


def _predict_for(question: tuple[_Order, Window, str]) -> None:
    """Predict a block on a worker. Addresses come, and a file goes: nothing large travels."""
    order, core, path = question
    _predict_block(_prepared(order), core, Path(path))


def _predict_on(cluster: Cluster, order: _Order, run: Run, work: Work, todo: list[Window], watch: Callable[[Progress], None]) -> None:
    """Predict the blocks that are not done yet on workers.

    Raises:
        GeosegError: of the first block that failed; those that were finished stay.
    """
    counts = {core: len(work.plan.tiles(core)) for core in todo}
    total, done, area = sum(counts.values()), 0, 0.0
    watch(Progress("predict", 0, total, 0))
    longest_first = sorted(todo, key=lambda core: -counts[core])  # so that all workers end together
    questions = [(order, core, _absolute(run.block(core))) for core in longest_first]
    for (_, core, _), answer in run_on(_predict_for, questions, cluster):
        if isinstance(answer, GeosegError):
            raise answer
        if answer is not None:
            raise ClusterError(
                f"{work.scene.path}: {core} was not answered ({type(answer).__name__}: {answer}); run again, or without --cluster"
            )
        done, area = done + counts[core], area + core.area / 1e6
        watch(Progress("predict", done, total, area))


def _block_side(plan: Plan, cluster: Cluster | None) -> int:
    """Side of the blocks: enough to keep all workers busy to the end, but few, for neighbours both predict the tiles between them."""
    if cluster is None or cluster.kind != "local":
        return BLOCK
    side = math.isqrt(plan.region.window.area // (_BLOCKS_PER_WORKER * cluster.workers)) // ALIGN * ALIGN
    return min(max(side, 2 * ALIGN), BLOCK)


def _absolute(path: str | Path) -> str:
    return str(Path(path).absolute())


class _Products:
    """What is made of the finished blocks."""

    def __init__(self, run: Run, work: Work, cores: list[Window], shaping: Shaping) -> None:
        self.run, self.plan, self.scene, self.card, self.shaping = run, work.plan, work.scene, work.segmenter.card, shaping
        self.names: list[str] = _names(run.stem, run.facts["outputs"])
        self.warnings: list[str] = []
        window = self.plan.region.window
        self._parts = [(core.shift(-window.row, -window.col), run.block(core)) for core in cores]
        self._grid = self.scene.grid[window.row : window.end_row, window.col : window.end_col]
        self._tags = tags(run.facts, self.scene.path)

    def write(self, seconds: dict[str, float], watch: Callable[[Progress], None]) -> Facts:
        """Write all results into the work folder; returns what the manifest says of them."""
        legend, facts = self.card.legend, self.run.facts["outputs"]
        steps = [
            ("raster", True, self._write_rasters),
            ("polygons", facts["polygons"] is not None, self._write_polygons),
            ("quicklook", facts["quicklook"], self._write_quicklook),
        ]
        for number, (stage, wanted, step) in enumerate(steps):
            if wanted:
                watch(Progress(stage, number, len(steps), 0))
                began = time.monotonic()
                step()
                seconds[stage] = time.monotonic() - began
        classes = {
            c.name: {
                "id": c.id,
                "pixels": int(self._counts[c.id]),
                "area_m2": _finite(self._areas[c.id]),
                "polygons": self._faces.get(c.id),
            }
            for c in legend.classes
        }
        if not self._counts[1:].any():
            self.warnings.append("the scene holds no valid pixel in the wanted region: the result is empty")
        return {"classes": classes, "nodata_pixels": int(self._counts[NODATA])}

    def _mosaic(self, *layers: int) -> BlockMosaic:
        return BlockMosaic(self._parts, layers)

    def _path(self, name: str) -> Path:
        return self.run.work / f"{self.run.stem}_{name}"

    def _write_rasters(self) -> None:
        outputs, legend = self.run.facts["outputs"], self.card.legend
        pieces = ((window, values[0]) for window, values in self._tiles(0))
        self._counts = cog.write_cog(pieces, self._path("classes.tif"), self._grid, legend, self._tags)
        self._areas = class_areas(self._grid, self._counts)
        self._faces: dict[int, int] = {}
        if outputs["confidence"]:
            cog.write_scalar_cog(self._tiles(1), self._path("confidence.tif"), self._grid, ["confidence"], self._tags)
        if outputs["scores"]:
            layers = range(2, 2 + len(legend))
            cog.write_scalar_cog(self._tiles(*layers), self._path("scores.tif"), self._grid, [c.name for c in legend.classes], self._tags)

    def _tiles(self, *layers: int) -> Iterator[tuple[Window, np.ndarray]]:
        mosaic = self._mosaic(*layers)
        return mosaic.read(mosaic.window.split(ALIGN, 8 * ALIGN))

    def _write_polygons(self) -> None:
        window = self.plan.region.window
        mosaic = self._mosaic(0, 1)
        bands = ((part, values[0], values[1]) for part, values in mosaic.bands(ALIGN))

        def read(part: Window) -> tuple[np.ndarray, np.ndarray]:
            _, values = next(mosaic.read([part]))
            return values[0], values[1]

        faces = polygonize(bands, window.shape, self.shaping, self._grid, self.card.legend, read)
        features = Features.of(faces, self._grid, self.card.legend)
        self._faces = features.counts()
        facts = self.run.facts["outputs"]["polygons"]
        path = self._path(f"polygons{facts['suffix']}")
        write_vectors(path, features, self._tags, kind=format_of(path), single_layer=facts["single_layer"])

    def _write_quicklook(self) -> None:
        image, valid, pixel_m = report.photograph(self.scene, self.plan.region.window)
        report.write_quicklook(
            self._path("quicklook.png"),
            image,
            valid,
            cog.preview(self._path("classes.tif"), valid.shape),
            self.card.legend,
            self._counts,
            title=Path(self.scene.path).name,
            subtitle=f"geoseg {__version__}, model {self.card.name} {self.card.version}",
            areas_m2=self._areas if self.scene.pixel_m else None,
            panel_pixel_m=pixel_m,
            attribution=self.scene.facts()["copyright"],
        )
