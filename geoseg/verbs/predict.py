"""From a scene to a class raster and polygons."""

from __future__ import annotations

import math
import queue
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch

from geoseg import __version__, blend, cog, geopackage, report
from geoseg.blend import Canvas, Taper, taper
from geoseg.blocks import BlockMosaic, write_block
from geoseg.card import ModelCard
from geoseg.errors import CoverageError, OptionsError, OutputError, ResolutionError
from geoseg.legend import NODATA
from geoseg.manifest import Facts, Run
from geoseg.models import locate
from geoseg.polygons import polygonize
from geoseg.polygons.measure import class_areas
from geoseg.region import Region
from geoseg.scene import Policy, Scene, Stretch
from geoseg.segmenter import Augmentation, Precision, Segmenter
from geoseg.tiling import Tile, Tiling, cores
from geoseg.window import Window

BLOCK = 8192
"""Largest side of a block in pixels: what a worker does, and what a killed run has to do again at most."""

_ALIGN = 512
_BAND = 256
NEAR = 1.1
FAR = 8.0
_CONFIDENCE_NODATA = 255

T = TypeVar("T")


class Reader(Protocol):
    """Open pixels; one thread at a time."""

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Pixels ``(B, H, W)`` and validity ``(H, W)`` bool; outside the source filled and not valid."""

    def valid(self, window: Window) -> np.ndarray:
        """Validity alone, ``(H, W)`` bool."""


class Source(Protocol):
    """Pixels on a grid: a ``Scene``, or anything that reads like one."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""

    def reader(self) -> AbstractContextManager[Reader]:
        """Open the pixels."""


@dataclass(frozen=True, slots=True)
class Options:
    """What decides a prediction, beside scene and model.

    Attributes:
        tile: height and width of a tile in the model's pixels; None for the card's.
        overlap: pixels that neighbouring tiles share; None for the card's.
        taper: weights of a tile's pixels.
        tta: test-time augmentation.
        precision: of the convolutions.
        scores: keep the scores of all classes.
    """

    tile: int | None = None
    overlap: int | None = None
    taper: Taper = "flat"
    tta: Augmentation = "none"
    precision: Precision = "auto"
    scores: bool = False

    def __post_init__(self) -> None:
        """Refuse an unknown taper."""
        if self.taper not in blend.TAPERS:
            raise OptionsError(f"taper {self.taper!r} is unknown; choose one of {', '.join(blend.TAPERS)}")


@dataclass(frozen=True)
class Plan:
    """How a scene is predicted: all of it is data, nothing is open, so that any worker can take a block of it.

    Attributes:
        scene: the pixels that get a class.
        seen: the same ground on the network's pixels; the scene itself where the resolutions agree.
        region: the part of the scene that is wanted.
        tiling: the lattice over ``seen``.
        taper: weights of a tile's pixels.
        stretch: the scene's own range, where it is not of the card's dtype.
        scores: whether the scores of all classes are wanted.
    """

    scene: Source
    seen: Source
    region: Region
    tiling: Tiling
    taper: Taper
    stretch: Stretch | None
    scores: bool

    @property
    def weights(self) -> np.ndarray:
        """Of a tile along one axis, ``(tile,)`` float32."""
        return taper(self.taper, self.tiling.tile, self.tiling.overlap)

    def layers(self, classes: int) -> int:
        """Number of uint8 layers of an answer: classes, confidence, and the scores of all classes if wanted."""
        return 2 + (classes if self.scores else 0)

    def cores(self, size: int = BLOCK) -> list[Window]:
        """What each block owns; together they are the region, each pixel once."""
        return list(cores(self.region.window, size, _ALIGN))

    def around(self, core: Window) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """For the core's rows and for its columns: the two neighbouring seen pixels and the weight of the second."""
        rows, cols = (
            blend.neighbours(np.arange(low, low + size), self.scene.shape[axis], self.seen.shape[axis])
            for axis, (low, size) in enumerate(((core.row, core.height), (core.col, core.width)))
        )
        return rows, cols

    def field(self, core: Window) -> Window:
        """The seen pixels whose logits decide the core."""
        if self.seen.shape == self.scene.shape:
            return core
        (top, bottom, _), (left, right, _) = self.around(core)
        return Window.between(int(top[0]), int(left[0]), int(bottom[-1]) + 1, int(right[-1]) + 1)

    def tiles(self, core: Window) -> list[Tile]:
        """The tiles that give weight to the core, row by row."""
        return list(self.tiling.tiles(self.field(core), blend.rim(self.weights)))


def make_plan(scene: Source, card: ModelCard, options: Options, *, pixel_m: float | None, stretch: Stretch | None, region: Region | None = None) -> Plan:
    """Decide the network's grid and the lattice over it.

    Args:
        scene: the pixels.
        card: the model's facts.
        options: what overrides them.
        pixel_m: size of the scene's pixels on the ground in metres; None where unknown, then the scene is seen as it is.
        stretch: the scene's own range.
        region: the part that is wanted; None for all.

    Raises:
        ResolutionError: if the scene's pixel is more than eight times larger or smaller than the card's.
        TilingError: if tile and overlap do not fit together.
    """
    ratio = (pixel_m or card.resolution_m) / card.resolution_m
    if not 1 / FAR <= ratio <= FAR:
        where = f"{scene.path}: " if isinstance(scene, Scene) else ""
        raise ResolutionError(
            f"{where}pixels are {pixel_m:.3g} m on the ground, model {card.name!r} needs about {card.resolution_m:.3g} m "
            f"({card.resolution_m / FAR:.3g} to {card.resolution_m * FAR:.3g} m); resample the scene or choose another model"
        )
    seen = scene
    if not 1 / NEAR <= ratio <= NEAR and isinstance(scene, Scene):
        height, width = (max(1, round(length * ratio)) for length in scene.shape)
        seen = scene.resampled((height, width))
    tile = card.tile if options.tile is None else options.tile
    overlap = min(card.overlap, tile // 2 // card.stride * card.stride) if options.overlap is None else options.overlap
    tiling = Tiling(*seen.shape, tile=tile, overlap=overlap, align=card.stride)
    plan = Plan(scene, seen, region or Region(Window.of(scene.shape)), tiling, options.taper, stretch, options.scores)
    _ = plan.weights
    return plan


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
    block: int = BLOCK,
    confidence: bool = False,
    vectors: bool = True,
    quicklook: bool = True,
    force: bool = False,
    policy: Policy | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Facts:
    """Predict a scene: class raster, polygons, quicklook and manifest.

    Writes ``STEM_classes.tif`` (COG), ``STEM_polygons.gpkg``, ``STEM_quicklook.png`` and, last, ``STEM.manifest.json``.
    A killed run is taken up where it was by calling this again; a finished one is left as it is.

    Args:
        scene: GeoTIFF.
        model: name of a known model, or its folder.
        out: folder of the results; None for the scene's own.
        bands: 1-based band numbers of the file in the model's order; None to find them by name.
        bbox: xmin, ymin, xmax, ymax in the scene's CRS: the part that is wanted. The answer there is that of the whole scene.
        aoi: vector file of polygons: only pixels whose centre lies in them.
        options: what else decides the result.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        batch: most tiles of a forward pass; None for what fits.
        compile: use ``torch.compile``.
        block: largest side of a block, pixels; what a killed run does again at most. The result does not depend on it.
        confidence: also write ``STEM_confidence.tif``.
        vectors: write the polygons.
        quicklook: write the picture.
        force: forget earlier work and replace earlier results.
        policy: which files may be opened.
        watch: called now and then.

    Returns:
        The manifest. ``manifest["already_done"]`` says whether this run had been finished before.

    Raises:
        GeosegError: one of its kinds, when anything is not as it must be; nothing half-written is left.
    """
    options = options or Options()
    started = time.monotonic()
    path, folder = Path(scene), locate(model)
    card, _ = ModelCard.read(folder)
    described = Scene.describe(path, bands=card.bands, indexes=bands, policy=policy or Policy())
    region = Region.of(described.grid, bbox, None if aoi is None else Path(aoi))
    stretch = None if described.dtype == card.scaling.dtype else described.stretch(card.scaling.percentiles)
    plan = make_plan(described, card, options, pixel_m=described.pixel_m, stretch=stretch, region=region)
    segmenter = Segmenter.load(folder, device=device, precision=options.precision, tta=options.tta, compile=compile)
    facts: Facts = {
        "geoseg": __version__,
        "scene": {"sha256": described.sha256(), "bands": list(described.bands)},
        "model": {"name": card.name, "version": card.version, "card_sha256": card.hash, "weights_sha256": card.sha256},
        "options": {**asdict(options), "tile": plan.tiling.tile, "overlap": plan.tiling.overlap, "precision": segmenter.precision},
        "region": region.facts,
        "seen_shape": list(plan.seen.shape),
        "stretch": None if stretch is None else asdict(stretch),
        "outputs": {"confidence": confidence, "scores": options.scores, "vectors": vectors, "quicklook": quicklook},
    }
    stem = path.stem
    run = Run(Path(out) if out is not None else path.parent, stem, facts, force=force)
    if before := run.finished():
        return {**before, "already_done": True}
    with run:
        run.check_clear(_names(stem, facts["outputs"]))
        _check_room(run.work, plan)
        seconds = {"prepare": time.monotonic() - started}
        todo = [core for core in plan.cores(block) if not run.block(core).exists()]
        _predict_blocks(run, plan, segmenter, todo, batch, watch)
        seconds["predict"] = time.monotonic() - started - seconds["prepare"]
        products = _Products(run, plan, described, segmenter, plan.cores(block))
        manifest = products.write(seconds, watch)
        manifest["scene"] = {"path": str(path), **described.facts()}
        manifest["model"] = facts["model"]
        manifest["blocks"] = {"total": len(plan.cores(block)), "taken_up": len(plan.cores(block)) - len(todo)}
        manifest["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
        manifest["warnings"] = [*described.warnings, *products.warnings]
        manifest["device"] = {"name": str(segmenter.device), "batch": segmenter.batch, "torch": torch.__version__}
        return {**run.publish(products.names, manifest), "already_done": False}


def _names(stem: str, outputs: dict[str, bool]) -> list[str]:
    """File names of a run's results."""
    wanted = [
        ("classes.tif", True),
        ("classes.tif.aux.xml", True),
        ("confidence.tif", outputs["confidence"]),
        ("scores.tif", outputs["scores"]),
        ("polygons.gpkg", outputs["vectors"]),
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
        raise OutputError(f"{folder.parent}: the disk is full: {free / 1e6:,.1f} MB free, about {need / 1e6:,.1f} MB needed; free space or choose another --out")


def _predict_blocks(run: Run, plan: Plan, segmenter: Segmenter, todo: list[Window], batch: int | None, watch: Callable[[Progress], None]) -> None:
    """Predict the blocks that are not done yet."""
    counts = {core: len(plan.tiles(core)) for core in todo}
    total, done, area = sum(counts.values()), 0, sum(core.area for core in todo) / 1e6
    if todo:
        segmenter.prepare(plan.tiles(todo[0])[0].seen.shape, batch)

    def tick(tiles: int) -> None:
        nonlocal done
        done += tiles
        watch(Progress("predict", done, total, area * done / total))

    watch(Progress("predict", 0, total, 0))
    for core in todo:
        before = done
        layers = plan.layers(len(segmenter.card.legend))
        write_block(run.block(core), core, predict_block(plan, core, segmenter, tick), layers)
        tick(counts[core] - (done - before))


class _Products:
    """What is made of the finished blocks."""

    def __init__(self, run: Run, plan: Plan, scene: Scene, segmenter: Segmenter, cores: list[Window]) -> None:
        self.run, self.plan, self.scene, self.card = run, plan, scene, segmenter.card
        self.names: list[str] = _names(run.stem, run.facts["outputs"])
        self.warnings: list[str] = []
        window = plan.region.window
        self._parts = [(core.shift(-window.row, -window.col), run.block(core)) for core in cores]
        self._grid = scene.grid[window.row : window.end_row, window.col : window.end_col]
        self._tags = {
            "GEOSEG_VERSION": __version__,
            "MODEL": f"{self.card.name} {self.card.version}",
            "MODEL_SHA256": self.card.sha256,
            "SOURCE": Path(scene.path).name,
            "SOURCE_SHA256": run.facts["scene"]["sha256"],
            "OPTIONS": ", ".join(f"{key}={value}" for key, value in run.facts["options"].items()),
        }

    def write(self, seconds: dict[str, float], watch: Callable[[Progress], None]) -> Facts:
        """Write all results into the work folder; returns what the manifest says of them."""
        legend, facts = self.card.legend, self.run.facts["outputs"]
        steps = [
            ("raster", True, self._write_rasters),
            ("polygons", facts["vectors"], self._write_polygons),
            ("quicklook", facts["quicklook"], self._write_quicklook),
        ]
        for number, (stage, wanted, step) in enumerate(steps):
            if wanted:
                watch(Progress(stage, number, len(steps), 0))
                began = time.monotonic()
                step()
                seconds[stage] = time.monotonic() - began
        classes = {
            c.name: {"id": c.id, "pixels": int(self._counts[c.id]), "area_m2": _finite(self._areas[c.id]), "polygons": self._faces.get(c.id)}
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
        return mosaic.read(mosaic.window.split(_ALIGN, 8 * _ALIGN))

    def _write_polygons(self) -> None:
        window = self.plan.region.window
        bands = ((part, values[0], values[1]) for part, values in self._mosaic(0, 1).bands(_ALIGN))
        faces = polygonize(bands, window.shape)
        self._faces = dict(enumerate(faces.count().tolist()))
        geopackage.write_geopackage(self._path("polygons.gpkg"), faces, self._grid, self.card.legend, self._tags)

    def _write_quicklook(self) -> None:
        window, whole = self.plan.region.window, self.scene.shape
        height, width = report.panel_shape(window.shape)
        small = tuple(max(1, round(n * part / full)) for n, part, full in zip(whole, (height, width), window.shape, strict=True))
        view = self.scene.resampled((small[0], small[1])) if small != whole else self.scene
        corner = Window(window.row * small[0] // whole[0], window.col * small[1] // whole[1], height, width)
        image, valid = view.read(corner)
        pixel_m = self.scene.pixel_m and self.scene.pixel_m * math.sqrt(window.area / (height * width))
        report.write_quicklook(
            self._path("quicklook.png"),
            image,
            valid,
            cog.preview(self._path("classes.tif"), (height, width)),
            self.card.legend,
            self._counts,
            title=Path(self.scene.path).name,
            subtitle=f"geoseg {__version__}, model {self.card.name} {self.card.version}",
            areas_m2=self._areas if self.scene.pixel_m else None,
            panel_pixel_m=pixel_m,
        )


def predict_block(plan: Plan, core: Window, segmenter: Segmenter, tick: Callable[[int], None] = lambda tiles: None) -> Iterator[tuple[Window, np.ndarray]]:
    """Classify the pixels one block owns; yield finished row bands, top to bottom.

    A thread reads ahead, another blends on the device; the caller's thread receives.

    Args:
        plan: of the scene.
        core: what the block owns.
        segmenter: the model.
        tick: called with the number of tiles that were answered since the last call.

    Yields:
        A window of the core over its full width, and ``(layers, H, W)`` uint8: the class ids (0 where the scene has no
        data or the region ends), the confidence ``round(254 p)`` (255 there), and the scores if the plan wants them.

    Raises:
        ReadError: if a part of the scene cannot be decoded.
        CoverageError: if a valid pixel got no answer.
    """
    ids = np.array(segmenter.card.legend.ids, np.uint8)
    with plan.scene.reader() as reader:
        for window, answer, short in _ahead(_blend(plan, core, segmenter, tick), 2):
            valid = reader.valid(window) & plan.region.mask(window)
            if (valid & short.cpu().numpy()).any():
                row, col = np.argwhere(valid & short.cpu().numpy())[0]
                raise CoverageError(
                    f"pixel ({window.row + row}, {window.col + col}) got no finite answer; with --precision fp16 try bf16 or fp32, "
                    "otherwise this is a bug in geoseg: please report it"
                )
            values = answer.cpu().numpy()
            values[0] = np.where(valid, ids[values[0]], NODATA)
            values[1:, ~valid] = _CONFIDENCE_NODATA
            yield window, values


def _blend(plan: Plan, core: Window, segmenter: Segmenter, tick: Callable[[int], None]) -> Generator[tuple[Window, torch.Tensor, torch.Tensor]]:
    """Answer the tiles of a block and give away rows as they are finished: window, ``(layers, H, W)`` uint8, shortfall."""
    field, weights = plan.field(core), plan.weights
    rim = blend.rim(weights)
    slack = 2 + math.ceil(plan.seen.shape[0] / plan.scene.shape[0])
    depth = min(field.height, plan.tiling.tile - 2 * rim + slack)
    canvas = Canvas(field.row, field.col, field.width, depth, len(segmenter.card.legend), weights, segmenter.device)
    rows, cols = plan.around(core)
    done = 0
    for tiles, pixels, valid in _ahead(_questions(plan, core, segmenter), 3):
        answers = segmenter.logits(pixels, valid, plan.stretch)
        for tile, logits in zip(tiles, answers, strict=True):
            for first, end in _finished(rows, done, tile.window.row + rim, canvas):
                yield _answer(plan, core, canvas, (rows, cols), slice(first, end))
                done = end
            canvas.add(logits, (tile.seen.row, tile.seen.col), (tile.window.row, tile.window.col))
        tick(len(tiles))
    for first, end in _finished(rows, done, field.end_row, canvas):
        yield _answer(plan, core, canvas, (rows, cols), slice(first, end))


def _finished(rows: tuple[np.ndarray, ...], done: int, ready: int, canvas: Canvas) -> Iterator[tuple[int, int]]:
    """Bands of the core's rows, from ``done`` on, that depend on no seen row from ``ready`` on; moves the canvas along."""
    low, high, _ = rows
    while done < len(low):
        end = int(np.searchsorted(high, min(ready, canvas.top + canvas.depth)))
        end = min(end, done + _BAND)
        if end <= done:
            return
        yield done, end
        done = end
        top = int(low[done]) if done < len(low) else int(high[-1]) + 1
        canvas.advance(min(top, ready) - canvas.top)


def _answer(
    plan: Plan, core: Window, canvas: Canvas, around: tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]], band: slice
) -> tuple[Window, torch.Tensor, torch.Tensor]:
    """Decide a band of the core's rows."""
    with torch.inference_mode():
        (low, high, part), cols = tuple(axis[band] for axis in around[0]), around[1]
        held = slice(int(low[0]) - canvas.top, int(high[-1]) + 1 - canvas.top)
        if plan.seen.shape == plan.scene.shape:
            logits, mass = canvas.peek(slice(held.start, held.start + len(low)))
            short = (mass - 1).abs() > 1e-3
        else:
            logits, mass = canvas.peek(held)
            both = blend.interpolate(torch.cat([logits, mass[None]]), 1, low - low[0], high - low[0], part)
            both = blend.interpolate(both, 2, cols[0] - canvas.left, cols[1] - canvas.left, cols[2])
            logits, mass = both[:-1] / both[-1].clamp_min(1e-6), both[-1]
            short = mass < 0.1
        classes, confidence = blend.decide(logits)
        layers = [classes[None], confidence[None]]
        if plan.scores:
            layers.append(logits.softmax(0).mul_(254).round_().to(torch.uint8))
        window = Window(core.row + band.start, core.col, len(low), core.width)
        return window, torch.cat(layers), short | ~logits.sum(0).isfinite()


def _questions(plan: Plan, core: Window, segmenter: Segmenter) -> Generator[tuple[list[Tile], np.ndarray, np.ndarray]]:
    """Read the tiles of a block in batches; tiles without any valid pixel are not asked."""
    tiles: list[Tile] = []
    with plan.seen.reader() as reader:
        for tile in plan.tiles(core):
            if not tiles:
                size = segmenter.batch
            pixels, valid = reader.read(tile.seen)
            if not valid.any():
                continue
            if not tiles:
                shape = (size, *tile.seen.shape)
                batch, known = np.empty((*shape, len(pixels)), pixels.dtype), np.empty(shape, bool)
            batch[len(tiles)], known[len(tiles)] = pixels.transpose(1, 2, 0), valid
            tiles.append(tile)
            if len(tiles) == size:
                yield tiles, batch.transpose(0, 3, 1, 2), known
                tiles = []
    if tiles:
        yield tiles, batch[: len(tiles)].transpose(0, 3, 1, 2), known[: len(tiles)]


def _ahead(items: Generator[T], depth: int) -> Generator[T]:
    """Work through ``items`` in a thread of its own, at most ``depth`` ahead of the caller; failures reach the caller."""
    line: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(kind: str, value: T | BaseException | None) -> None:
        while not stop.is_set():
            try:
                line.put((kind, value), timeout=0.1)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            with closing(items):
                for item in items:
                    put("item", item)
                    if stop.is_set():
                        return
        except BaseException as error:  # noqa: BLE001 handed to the caller's thread, whatever it is
            put("error", error)
        else:
            put("end", None)

    thread = threading.Thread(target=work, name="geoseg-ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = line.get()
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(value, BaseException)  # noqa: S101 by construction
                raise value
            yield value  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
