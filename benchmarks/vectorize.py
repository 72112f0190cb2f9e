"""How fast a class raster becomes a GeoPackage of polygons, against two other ways, and how much memory it takes.

    python -m benchmarks.vectorize [--quick] [--json]

Two rasters of 6000 x 6000 pixels: the classes that the default model predicts for the demo scene, mirrored to that size, and
speckle, the largest of six fields of blurred noise at each pixel. Each is turned into a GeoPackage by geoseg, by
`rasterio.features.shapes` (4-connected) with shapely and `geopandas.GeoDataFrame.to_file`, and by GDAL's `gdal_polygonize.py`
where it is installed. `..._s` is the time in the process, without start and imports, `..._process_s` that of the whole process;
kernels were compiled and cached before. `speedup_shapes` compares the former, `speedup_shapes_process` and `speedup_gdal_polygonize`
the latter. `trace_over_shapes` is tracing, labelling and drawing polygons, over the time of `rasterio.features.shapes` alone, both
from an array in memory and in one process. `growth_exponent` is the slope of the time over the pixels, both in logarithms, for
mirrored predictions of 3000 x 3000 to 12000 x 12000 pixels: 1 is linear. Last, one of 30000 x 30000 pixels.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import rasterio
import rasterio.features
import rasterio.windows

from benchmarks.common import DEMO, child, hardware, parse, peak_gb, seconds, tell, workplace

BAND = 512


def predict(task: dict[str, Any]) -> dict[str, Any]:
    """The classes of the demo scene, or of a square of ``side`` pixels in it."""
    from geoseg.verbs.predict import predict as verb

    with rasterio.open(DEMO) as demo:
        window = rasterio.windows.Window(600, 600, task["side"], task["side"])
        bbox = demo.window_bounds(window) if task["side"] else None
    verb(DEMO, out=task["out"], bbox=bbox, vectors=False, quicklook=False, force=True)
    return {}


def speckle(side: int) -> np.ndarray:
    """Classes (side, side) uint8, 1 to 6: which of six fields of blurred noise is the largest."""
    rng, reach = np.random.default_rng(0), 7
    best, classes = np.full((side, side), -np.inf, np.float32), np.zeros((side, side), np.uint8)
    for class_id in range(1, 7):
        field = rng.standard_normal((side + 3 * (reach - 1), side + 3 * (reach - 1)), np.float32)
        for _ in range(3):
            field = sum(field[at : len(field) - reach + 1 + at] for at in range(reach))
            field = sum(field[:, at : field.shape[1] - reach + 1 + at] for at in range(reach))
        larger = field > best
        classes[larger] = class_id
        np.maximum(best, field, out=best)
    return classes


def write_raster(path: Path, cell: np.ndarray, side: int) -> Path:
    """A class raster of ``side`` x ``side`` pixels: a cell and its mirror images, as often as needed."""
    with rasterio.open(DEMO) as demo:
        profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": 0, "crs": demo.crs, "transform": demo.transform}
    tiles = {"tiled": True, "blockxsize": BAND, "blockysize": BAND, "compress": "deflate"}
    pair = np.concatenate([cell, cell[:, ::-1]], axis=1)
    cols = np.arange(side) % pair.shape[1]
    with rasterio.open(path, "w", **profile, **tiles, height=side, width=side) as file:
        for row in range(0, side, BAND):
            rows = np.arange(row, min(row + BAND, side)) % (2 * len(cell))
            band = pair[np.minimum(rows, 2 * len(cell) - 1 - rows)][:, cols]
            file.write(band, 1, window=rasterio.windows.Window(0, row, side, len(rows)))
    return path


def with_geoseg(raster: str, out: str) -> dict[str, Any]:
    """Seconds of the verb, and of its steps: drawing is all from the raster to polygons, writing is all that is left."""
    from geoseg.verbs.vectorize import vectorize as verb

    moments: dict[str, float] = {}
    began = time.perf_counter()
    facts = verb(raster, out, legend="isprs", force=True, watch=lambda stage, *_: moments.setdefault(stage, time.perf_counter()))
    ended = time.perf_counter()
    steps = {"draw": moments["write"] - moments["trace"], "write": ended - moments["write"]}
    return {"seconds": ended - began, "steps": steps, "polygons": facts["polygons"]}


def with_shapes(raster: str, out: str) -> dict[str, Any]:
    """Seconds of the way most people go."""
    import geopandas
    import shapely

    began = time.perf_counter()
    with rasterio.open(raster) as file:
        classes, transform, crs = file.read(1), file.transform, file.crs
    found = list(rasterio.features.shapes(classes, mask=classes > 0, connectivity=4, transform=transform))
    polygons = [shapely.geometry.shape(shape) for shape, _ in found]
    frame = geopandas.GeoDataFrame({"class_id": [int(value) for _, value in found]}, geometry=polygons, crs=crs)
    frame.to_file(out, driver="GPKG")
    return {"seconds": time.perf_counter() - began, "polygons": len(frame)}


WAYS = {"geoseg": with_geoseg, "shapes": with_shapes}


def vectorize(task: dict[str, Any]) -> dict[str, Any]:
    """One way from a raster to a GeoPackage, some times; the facts of the last, and the seconds of all but the first."""
    way, out = WAYS[task["way"]], str(Path(task["raster"]).with_suffix(f".{task['way']}.gpkg"))
    facts = way(task["raster"], out) | {"peak_gb": peak_gb(), "again": 0.0}
    for _ in range(task["times"] - 1):
        facts |= way(task["raster"], out)
        facts["again"] += facts["seconds"]
    return facts


def trace_alone(task: dict[str, Any]) -> dict[str, Any]:
    """Seconds of tracing and drawing polygons, and of ``rasterio.features.shapes``, by turns, from one array."""
    from geoseg.polygons import polygonize
    from geoseg.window import Window

    with rasterio.open(task["raster"]) as file:
        classes = file.read(1)

    def ours(classes: np.ndarray) -> None:
        polygonize([(Window.of(classes.shape), classes, None)], classes.shape)

    ours(classes[:100, :100].copy())
    spent = np.array(
        [
            (seconds(lambda: ours(classes)), seconds(lambda: list(rasterio.features.shapes(classes, mask=classes > 0, connectivity=4))))
            for _ in range(task["times"])
        ]
    )
    return {"trace": median(spent[:, 0]), "shapes": median(spent[:, 1])}


def gdal_polygonize(raster: Path) -> float | None:
    """Seconds of the whole process; None where it is not installed."""
    program = shutil.which("gdal_polygonize.py") or shutil.which("gdal_polygonize")
    out = raster.with_suffix(".gdal.gpkg")
    out.unlink(missing_ok=True)
    command = [program, "-q", str(raster), "-f", "GPKG", str(out), "classes", "class_id"]
    return None if program is None else seconds(lambda: subprocess.run(command, check=True))


def call(kind: str, **task: Any) -> dict[str, Any]:
    """A child process, with its wall time as ``process``, repetitions left out."""
    began = time.perf_counter()
    facts = child("benchmarks.vectorize", {"kind": kind, **{key: str(v) if isinstance(v, Path) else v for key, v in task.items()}})
    facts["process"] = time.perf_counter() - began - facts.get("again", 0.0)
    print(f"# {kind} {Path(task.get('raster', '')).name} {task.get('way', '')}: {facts}", file=sys.stderr, flush=True)
    return facts


def compare(name: str, raster: Path, times: int) -> dict[str, Any]:
    """All ways for one raster, by turns; medians."""
    facts: dict[str, Any] = {}
    turns = [{way: call("vectorize", way=way, raster=raster, times=2) for way in WAYS} for _ in range(times)]
    for way in WAYS:
        runs = [turn[way] for turn in turns]
        facts |= {f"{way}_s": median(run["seconds"] for run in runs), f"{way}_process_s": median(run["process"] for run in runs)}
        facts |= {f"{way}_peak_gb": median(run["peak_gb"] for run in runs), f"{way}_polygons": runs[0]["polygons"]}
        facts |= {f"{step}_s": median(run["steps"][step] for run in runs) for step in runs[0].get("steps", ())}
    gdal = [gdal_polygonize(raster) for _ in range(times)]
    facts["gdal_polygonize_s"] = None if gdal[0] is None else median(gdal)
    facts["speedup_shapes"] = facts["shapes_s"] / facts["geoseg_s"]
    facts["speedup_shapes_process"] = facts["shapes_process_s"] / facts["geoseg_process_s"]
    facts["speedup_gdal_polygonize"] = None if gdal[0] is None else facts["gdal_polygonize_s"] / facts["geoseg_process_s"]
    alone = call("trace_alone", raster=raster, times=times)
    facts |= {"trace_alone_s": alone["trace"], "shapes_alone_s": alone["shapes"], "trace_over_shapes": alone["trace"] / alone["shapes"]}
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in facts.items()}
    print(f"# {name}: {rounded}", file=sys.stderr, flush=True)
    return rounded


def measure(*, quick: bool) -> dict[str, Any]:
    """All measurements."""
    side, times = (1200, 1) if quick else (6000, 3)
    with workplace() as folder:
        call("predict", side=640 if quick else 0, out=folder)
        with rasterio.open(folder / f"{DEMO.stem}_classes.tif") as file:
            cell = file.read(1)
        call("vectorize", way="geoseg", raster=write_raster(folder / "small.tif", cell, 256), times=1)  # compiles what is not cached yet
        predicted = compare("predicted", write_raster(folder / "predicted.tif", cell, side), times)
        speckled = compare("speckled", write_raster(folder / "speckled.tif", speckle(side), side), 1)
        sides, spent = ((600, 1200, 2400) if quick else (3000, 6000, 12000)), []
        for length in sides:
            raster = write_raster(folder / "growth.tif", cell, length)
            spent.append(median(call("vectorize", way="geoseg", raster=raster, times=2)["seconds"] for _ in range(times)))
        exponent = float(np.polyfit(2 * np.log(sides), np.log(spent), 1)[0])
        facts = {
            key: predicted[key] for key in ("speedup_shapes", "speedup_shapes_process", "speedup_gdal_polygonize", "trace_over_shapes")
        }
        facts |= {"peak_gb": predicted["geoseg_peak_gb"], "growth_exponent": round(exponent, 3)}
        facts |= {f"growth_{length}_s": round(value, 3) for length, value in zip(sides, spent, strict=True)}
        if not quick:
            large = call("vectorize", way="geoseg", raster=write_raster(folder / "growth.tif", cell, 30000), times=1)
            facts |= {"peak_30000_gb": round(large["peak_gb"], 3), "seconds_30000": round(large["seconds"], 2)}
            facts["polygons_30000"] = large["polygons"]
    facts |= {key: value for key, value in predicted.items() if key not in facts}
    facts |= {f"speckled_{key}": value for key, value in speckled.items()}
    return facts | {"side": side, "hardware": hardware()}


if __name__ == "__main__":
    arguments = parse(__doc__.splitlines()[0])
    if arguments.child:
        task = json.loads(arguments.child)
        print(json.dumps({"predict": predict, "vectorize": vectorize, "trace_alone": trace_alone}[task.pop("kind")](task)))
    else:
        tell(measure(quick=arguments.quick), arguments.json)
