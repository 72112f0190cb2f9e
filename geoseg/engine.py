"""A plan of a scene, answered block by block."""

from __future__ import annotations

import itertools
import math
import queue
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch

from geoseg import blend
from geoseg.blend import Canvas, Taper, taper
from geoseg.card import ModelCard
from geoseg.crf import DenseCRF
from geoseg.detector import Detector
from geoseg.errors import CoverageError, OptionsError, ResolutionError
from geoseg.instances import View
from geoseg.legend import NODATA
from geoseg.region import Region
from geoseg.scene import Scene, Stretch
from geoseg.segmenter import Augmentation, Precision, Segmenter, give_back_memory
from geoseg.tiling import Tile, Tiling, cores
from geoseg.window import Window

BLOCK = 6144
"""Largest side of a block in pixels: what a worker does, and what a killed run has to do again at most."""

ALIGN = 512
"""Inner borders of blocks lie on multiples of this, the block size of the COGs."""

NEAR = 1.1
"""Pixel sizes whose ratio to the card's is below this (and above its inverse) are taken as they are."""

FAR = 8.0
"""Pixel sizes whose ratio to the card's is above this (or below its inverse) are refused."""

_BAND = 512
_CONFIDENCE_NODATA = 255

T = TypeVar("T")
_Part = tuple[Tile, torch.Tensor, torch.Tensor | None]
"""A tile, the logits ``(K, H, W)`` of the pixels it sees, and which of these are answers ``(H, W)`` bool, None for all."""
_Band = tuple[Window, torch.Tensor, torch.Tensor]
"""A window, its layers ``(layers, H, W)`` uint8 with channel numbers for classes, and where they fall short ``(H, W)`` bool."""


class Reader(Protocol):
    """Open pixels; one thread at a time."""

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Pixels ``(B, H, W)`` and validity ``(H, W)`` bool; outside the source filled and not valid."""

    def valid(self, window: Window) -> np.ndarray:
        """Validity alone, ``(H, W)`` bool."""

    def empty(self, window: Window) -> bool:
        """Whether it is known without reading that nothing in the window is valid."""


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
        crf: sharpens the blended logits along image edges; None to leave them as they are.
    """

    tile: int | None = None
    overlap: int | None = None
    taper: Taper = "flat"
    tta: Augmentation = "none"
    precision: Precision = "auto"
    scores: bool = False
    crf: DenseCRF | None = None

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
        crf: sharpens the blended logits, in windows of its own lattice over ``seen``.
    """

    scene: Source
    seen: Source
    region: Region
    tiling: Tiling
    taper: Taper
    stretch: Stretch | None
    scores: bool
    crf: DenseCRF | None = None

    @property
    def weights(self) -> np.ndarray:
        """Of a tile along one axis, ``(tile,)`` float32."""
        return taper(self.taper, self.tiling.tile, self.tiling.overlap)

    def layers(self, classes: int) -> int:
        """Number of uint8 layers of an answer: classes, confidence, and the scores of all classes if wanted."""
        return 2 + (classes if self.scores else 0)

    def cores(self, size: int = BLOCK) -> list[Window]:
        """What each block owns; together they are the region, each pixel once."""
        return list(cores(self.region.window, size, ALIGN))

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

    def asked(self, core: Window) -> Window:
        """The seen pixels that need logits of the network: the field, and around it what the windows of the CRF see."""
        windows = [tile.seen for tile in self.crf_tiles(core)] or [self.field(core)]
        first, last = windows[0], windows[-1]
        return Window.between(first.row, first.col, last.end_row, last.end_col)

    def tiles(self, core: Window) -> list[Tile]:
        """The tiles that give weight to what is asked for the core, row by row."""
        return list(self.tiling.tiles(self.asked(core), blend.rim(self.weights)))

    @property
    def crf_weights(self) -> np.ndarray:
        """Of a window of the CRF along one axis, ``(crf.tile,)`` float32: in the middle of an overlap one window turns into the next."""
        assert self.crf is not None
        return taper("flat", self.crf.tile, self.crf.overlap)

    def crf_tiles(self, core: Window) -> list[Tile]:
        """The windows of the CRF that give weight to the core, row by row; none without a CRF."""
        if self.crf is None:
            return []
        lattice = Tiling(*self.seen.shape, tile=self.crf.tile, overlap=self.crf.overlap)
        return list(lattice.tiles(self.field(core), blend.rim(self.crf_weights)))


def make_plan(
    scene: Source, card: ModelCard, options: Options, *, pixel_m: float | None, stretch: Stretch | None, region: Region | None = None
) -> Plan:
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
    plan = Plan(scene, seen, region or Region(Window.of(scene.shape)), tiling, options.taper, stretch, options.scores, options.crf)
    _ = plan.weights
    return plan


def predict_block(
    plan: Plan, core: Window, segmenter: Segmenter, tick: Callable[[int], None] = lambda _: None
) -> Generator[tuple[Window, np.ndarray]]:
    """Classify the pixels one block owns; yield finished row bands, top to bottom.

    A thread reads ahead; the caller's thread computes: all of torch's work in one thread, for each new one brings its own
    pool of workers, and the pools would contend for the cores.

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
    layers = plan.layers(len(segmenter.card.legend))
    with plan.scene.reader() as reader:
        if reader.empty(core):
            yield from _nothing(core, layers)
            return
        waiting: _Band | None = None
        for band in _blend(plan, core, segmenter, tick):
            if waiting:
                yield _received(plan, reader, segmenter, waiting)
            waiting = band  # fetched one band late, so that a GPU has its next tiles before anybody waits for the last ones
        if waiting:
            yield _received(plan, reader, segmenter, waiting)


def _received(plan: Plan, reader: Reader, segmenter: Segmenter, band: _Band) -> tuple[Window, np.ndarray]:
    """A band on the host, with class ids, and no data where the scene or the region has none.

    Raises:
        CoverageError: if a valid pixel got no answer.
    """
    window, answer, short = band
    valid = reader.valid(window) & plan.region.mask(window)
    missing = valid & short.cpu().numpy()
    if missing.any():
        row, col = np.argwhere(missing)[0]
        raise CoverageError(
            f"pixel ({window.row + row}, {window.col + col}) got no finite answer; with --precision fp16 try bf16 or fp32, "
            "otherwise this is a bug in geoseg: please report it"
        )
    values = answer.cpu().numpy()
    ids = np.array(segmenter.card.legend.ids, np.uint8)
    values[0] = ids[values[0]]
    if not valid.all():
        values[0, ~valid] = NODATA
        values[1:, ~valid] = _CONFIDENCE_NODATA
    return window, values


def _nothing(core: Window, layers: int) -> Iterator[tuple[Window, np.ndarray]]:
    """The answer of a block without any valid pixel."""
    for window in core.split(_BAND, core.width):
        values = np.full((layers, *window.shape), _CONFIDENCE_NODATA, np.uint8)
        values[0] = NODATA
        yield window, values


def _blend(plan: Plan, core: Window, segmenter: Segmenter, tick: Callable[[int], None]) -> Iterator[_Band]:
    """Answer the tiles of a block and give away rows as they are finished: window, ``(layers, H, W)`` uint8, shortfall."""
    field, asked, slack = plan.field(core), plan.asked(core), 2 + math.ceil(plan.seen.shape[0] / plan.scene.shape[0])
    canvas = _canvas(asked, plan.weights, slack if plan.crf is None else plan.crf.tile, segmenter)
    settled = _settled(canvas, _logits(plan, core, segmenter, tick), asked.end_row)
    if plan.crf is not None:
        sharp = _canvas(field, plan.crf_weights, slack, segmenter)
        settled = _settled(sharp, _sharpened(plan, core, segmenter, canvas, settled), field.end_row)
        canvas = sharp
    rows, cols = plan.around(core)
    done = 0
    for ready in settled:
        for first, end in _finished(rows, done, ready, canvas):
            yield _answer(plan, core, canvas, (rows, cols), slice(first, end))
            done = end
            give_back_memory()  # so that the peak does not creep up with each block, as fragments of freed activations gather


def _canvas(field: Window, weights: np.ndarray, slack: int, segmenter: Segmenter) -> Canvas:
    """A canvas for a field that holds a tile's height of rows with weight, and ``slack`` rows above them."""
    depth = min(field.height, len(weights) - 2 * blend.rim(weights) + slack)
    return Canvas(field.row, field.col, field.width, depth, len(segmenter.card.legend), weights, segmenter.device)


def _logits(plan: Plan, core: Window, segmenter: Segmenter, tick: Callable[[int], None]) -> Iterator[_Part]:
    """Answer the tiles of a block, row by row; all their pixels are answers."""
    for tiles, pixels, valid in _ahead(_questions(plan, plan.tiles(core), segmenter), 3):
        for tile, logits in zip(tiles, segmenter.logits(pixels, valid, plan.stretch), strict=True):
            yield tile, logits, None
        tick(len(tiles))


def _settled(canvas: Canvas, parts: Iterator[_Part], end: int) -> Iterator[int]:
    """Add tiles that come row by row; before each, and after the last, say which row is the first that may still change."""
    for tile, logits, known in parts:
        yield tile.window.row + canvas.rim
        canvas.add(logits, (tile.seen.row, tile.seen.col), (tile.window.row, tile.window.col), known)
    yield end


def _sharpened(plan: Plan, core: Window, segmenter: Segmenter, canvas: Canvas, settled: Iterator[int]) -> Iterator[_Part]:
    """Sharpen the windows of the CRF, row by row, when the logits of the canvas are settled; valid pixels have an answer."""
    assert plan.crf is not None
    ready = canvas.top
    last: tuple[Window, torch.Tensor, torch.Tensor] | None = None
    with plan.seen.reader() as reader:
        for tile in plan.crf_tiles(core):
            seen = tile.seen
            canvas.advance(seen.row - canvas.top)
            while ready < seen.end_row:
                ready = next(settled)
            if reader.empty(seen):
                continue
            if last is None or last[0] != seen:  # windows that are pushed inside a small scene see the same pixels
                pixels, valid = reader.read(seen)
                logits, mass = canvas.peek(slice(0, seen.height))
                cols = slice(seen.col - canvas.left, seen.end_col - canvas.left)
                known = ((mass[:, cols] - 1).abs() <= 1e-3) & torch.from_numpy(valid).to(mass.device)
                sharp = plan.crf.sharpen(logits[:, :, cols], 255 * segmenter.levels(pixels, plan.stretch), known)
                last = seen, sharp, known
            yield tile, last[1], last[2]


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


def _answer(plan: Plan, core: Window, canvas: Canvas, around: tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]], band: slice) -> _Band:
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
        classes, confidence, finite = blend.decide(logits)
        layers = [classes[None], confidence[None]]
        if plan.scores:
            layers.append(logits.softmax(0).mul_(254).round_().to(torch.uint8))
        window = Window(core.row + band.start, core.col, len(low), core.width)
        return window, torch.cat(layers), short | ~finite


def detect_block(plan: Plan, core: Window, detector: Detector, tick: Callable[[int], None] = lambda _: None) -> list[View]:
    """Find the instances in the tiles one block owns: those whose middle lies in it, so that each tile is one block's.

    Args:
        plan: of a scene that the network sees as it is.
        core: what the block owns.
        detector: the model.
        tick: called with the number of tiles that were answered since the last call.

    Returns:
        What each tile shows, in pixels of the scene.

    Raises:
        ReadError: if a part of the scene cannot be decoded.
    """
    views = []
    for tiles, pixels, valid in _ahead(_questions(plan, _owned(plan, core), detector), 3):
        for tile, found in zip(tiles, detector.instances(pixels, valid, plan.stretch), strict=True):
            views += [View(tile.seen, instance.shift(tile.seen.row, tile.seen.col)) for instance in found]
        tick(len(tiles))
    return views


def detecting_tiles(plan: Plan) -> list[Tile]:
    """The tiles in which the instances of the region are sought; of those that see the same the first."""
    first: dict[Window, Tile] = {}
    for tile in plan.tiling.tiles(plan.region.window):
        first.setdefault(tile.seen, tile)
    return list(first.values())


def _owned(plan: Plan, core: Window) -> list[Tile]:
    """The tiles whose middle lies in a core."""
    return [tile for tile in detecting_tiles(plan) if core.contains(_middle(tile.window, plan.region.window))]


def _middle(window: Window, region: Window) -> Window:
    """The pixel in the middle of a window's part of the region."""
    part = window & region
    assert part is not None  # the tile touches the region
    return Window(part.row + part.height // 2, part.col + part.width // 2, 1, 1)


def _questions(plan: Plan, asked: list[Tile], model: Segmenter) -> Generator[tuple[list[Tile], np.ndarray, np.ndarray]]:
    """Read tiles, a row of the lattice at a time, and hand them out in batches, without those that hold no valid pixel."""
    tiles: list[Tile] = []
    with plan.seen.reader() as reader:
        for _, row in itertools.groupby(asked, key=lambda tile: tile.window.row):
            wanted = [tile for tile in row if not reader.empty(tile.seen)]
            if not wanted:
                continue
            first, last = wanted[0].seen, wanted[-1].seen
            strip = Window.between(first.row, first.col, last.end_row, last.end_col)
            pixels, valid = reader.read(strip)
            for tile in wanted:
                part = tile.seen.within(strip)
                if not valid[part].any():
                    continue
                if not tiles:
                    shape = (model.batch, *tile.seen.shape)
                    batch, known = np.empty((*shape, len(pixels)), pixels.dtype), np.empty(shape, bool)
                batch[len(tiles)], known[len(tiles)] = pixels[:, *part].transpose(1, 2, 0), valid[part]
                tiles.append(tile)
                if len(tiles) == len(batch):
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
                assert isinstance(value, BaseException)
                raise value
            yield value  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()


@contextmanager
def _quick_turns() -> Iterator[None]:
    """Hand the interpreter's lock over quickly: by default the computing thread waits for it up to 5 ms, at every step."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0003)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def write_behind(write: Callable[[Iterator[T]], None], items: Generator[T], depth: int = 2) -> None:
    """Write in a thread of its own what is made in this one, at most ``depth`` items behind; failures of either end both.

    Args:
        write: takes the items as they arrive.
        items: made in the caller's thread.
        depth: how many may wait.
    """
    line: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(depth)

    def arriving() -> Iterator[T]:
        while True:
            kind, value = line.get()
            if kind == "end":
                return
            if isinstance(value, BaseException):
                raise value
            yield value  # type: ignore[misc]

    with _quick_turns(), ThreadPoolExecutor(1, thread_name_prefix="geoseg-behind") as pool:
        written = pool.submit(write, arriving())

        def put(kind: str, value: T | BaseException | None) -> None:
            while not written.done():
                try:
                    line.put((kind, value), timeout=0.1)
                except queue.Full:
                    continue
                return

        try:
            with closing(items):
                for item in items:
                    put("item", item)
                    if written.done():
                        break
        except BaseException as error:
            put("error", error)
            raise
        put("end", None)
        written.result()
