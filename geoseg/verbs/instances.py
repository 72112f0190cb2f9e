"""What ``predict`` makes of a model that finds instances."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import rasterio.features
from affine import Affine
from numpy.typing import NDArray

from geoseg import __version__, report
from geoseg.blocks import read_views
from geoseg.card import ModelCard
from geoseg.engine import Options, Plan, detecting_tiles
from geoseg.errors import OptionsError
from geoseg.features import Features
from geoseg.instances import Instance, merge
from geoseg.manifest import Facts, Run, tags
from geoseg.polygons import Mask, Shaping, outlines
from geoseg.scene import Scene
from geoseg.vectors import format_of
from geoseg.vectors import write as write_vectors
from geoseg.window import Window

if TYPE_CHECKING:
    from geoseg.verbs.predict import Progress, Work

LEAST_OVERLAP = 16
"""Pixels in which two tiles can still tell that they show the same instance."""


def check(card: ModelCard, plan: Plan, options: Options, shaping: Shaping, *, confidence: bool, compiled: bool) -> None:
    """Refuse what has no meaning for instances.

    Raises:
        OptionsError: if something of the kind is wanted, or tiles overlap too little.
    """
    plain = Options()
    wanted = {
        "--tta": options.tta != plain.tta,
        "--taper": options.taper != plain.taper,
        "--crf": options.crf != plain.crf,
        "--scores": options.scores,
        "--confidence": confidence,
        "--compile": compiled,
        "--split": bool(shaping.split),
        "--connectivity": shaping.connectivity != Shaping().connectivity,
    }
    for word, given in wanted.items():
        if given:
            raise OptionsError(f"{word}: model {card.name!r} finds instances ({card.architecture}) and blends no classes; leave it out")
    if plan.tiling.overlap < LEAST_OVERLAP:
        raise OptionsError(
            f"overlap {plan.tiling.overlap}: instances in two tiles are told by what both show of them; choose {LEAST_OVERLAP} or more"
        )


class Products:
    """What is made of the finished blocks of views: polygons, one for each instance, and a quicklook."""

    def __init__(self, run: Run, work: Work, cores: list[Window], shaping: Shaping) -> None:
        self.run, self.plan, self.card, self.shaping = run, work.plan, work.segmenter.card, shaping
        self.scene = cast(Scene, work.plan.seen)
        self.warnings: list[str] = []
        facts = run.facts["outputs"]
        polygons = [f"{run.stem}_polygons{facts['polygons']['suffix']}"] if facts["polygons"] else []
        self.names = [*polygons, *([f"{run.stem}_quicklook.png"] if facts["quicklook"] else [])]
        self._blocks = [run.block(core) for core in cores]

    def write(self, seconds: dict[str, float], watch: Callable[[Progress], None]) -> Facts:
        """Write all results into the work folder; returns what the manifest says of them."""
        from geoseg.verbs.predict import Progress  # it builds on this room

        began, wanted = time.monotonic(), self.run.facts["outputs"]
        watch(Progress("polygons", 0, 2, 0))
        faces = outlines(self._masks(), self.plan.seen.shape, self.shaping, self.scene.grid, self.card.legend)
        features = Features.of(faces, self.scene.grid, self.card.legend)
        if wanted["polygons"]:
            path = self.run.work / self.names[0]
            single = wanted["polygons"]["single_layer"]
            write_vectors(path, features, tags(self.run.facts, self.scene.path), kind=format_of(path), single_layer=single)
        seconds["polygons"], began = time.monotonic() - began, time.monotonic()
        if wanted["quicklook"]:
            watch(Progress("quicklook", 1, 2, 0))
            self._write_quicklook(features)
            seconds["quicklook"] = time.monotonic() - began
        if not len(faces):
            self.warnings.append("no instance was found in the wanted region: the result is empty")
        return {"classes": self._facts(features)}

    def _masks(self) -> list[Mask]:
        """The instances, where they lie in the region."""
        views = [view for block in self._blocks for view in read_views(block)]
        tiles = [tile.seen for tile in detecting_tiles(self.plan)]
        found = merge(views, tiles, Window.of(self.plan.seen.shape), self.plan.tiling.overlap)
        return [mask for instance in found if (mask := self._clipped(instance)) is not None]

    def _clipped(self, instance: Instance) -> Mask | None:
        window = instance.window & self.plan.region.window
        if window is None:
            return None
        inside = instance.mask(window) & self.plan.region.mask(window)
        return Mask(window, inside, instance.class_id, instance.score) if inside.any() else None

    def _facts(self, features: Features) -> Facts:
        """Pixels, area and number of the instances of each class."""
        faces = features.faces
        pixels = np.bincount(faces.class_id, faces.pixels, 256)
        areas, counts = self._areas(features), features.counts()
        return {
            c.name: {
                "id": c.id,
                "pixels": int(pixels[c.id]),
                "area_m2": round(areas[c.id], 3) if np.isfinite(areas[c.id]) else None,
                "polygons": counts[c.id],
            }
            for c in self.card.legend.classes
        }

    def _areas(self, features: Features) -> dict[int, float]:
        sums = np.bincount(features.faces.class_id, features.areas_m2, 256)
        return {c.id: float(sums[c.id]) for c in self.card.legend.classes}

    def _write_quicklook(self, features: Features) -> None:
        image, valid, pixel_m = report.photograph(self.scene, self.plan.region.window)
        numbers = self._drawn(features, valid.shape)
        report.write_quicklook(
            self.run.work / self.names[-1],
            image,
            valid,
            np.append(np.uint8(0), features.faces.class_id)[numbers],
            self.card.legend,
            features.faces.count(),
            title=Path(self.scene.path).name,
            subtitle=f"geoseg {__version__}, model {self.card.name} {self.card.version}",
            areas_m2=self._areas(features) if self.scene.pixel_m else None,
            panel_pixel_m=pixel_m,
            attribution=self.scene.facts()["copyright"],
            numbers=numbers,
        )

    def _drawn(self, features: Features, shape: tuple[int, ...]) -> NDArray[np.int32]:
        """Which instance each pixel of the quicklook shows, from 1; the surest on top, 0 where there is none."""
        window, order = self.plan.region.window, np.argsort(features.faces.confidence, kind="stable")
        if not len(order):
            return np.zeros(shape, np.int32)
        place = Affine.translation(window.col, window.row) * Affine.scale(window.width / shape[1], window.height / shape[0])
        polygons = features.faces.polygons()
        drawn: NDArray[np.int32] = rasterio.features.rasterize(
            ((polygons[number], number + 1) for number in order.tolist()), shape, transform=place, all_touched=True, dtype="int32"
        )
        return drawn
