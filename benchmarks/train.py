"""Whether reading keeps up with learning: chips a second of `geoseg train`'s loader and of its network.

    python -m benchmarks.train [--quick] [--json]

The recipe is that of the default model (`configs/train/default.yaml`: size and number of chips, their variations, network, number of
workers), its data two made-up sources of the demo scene, mirrored: a large GeoTIFF with polygons that is read by windows, and small
images that are decoded once. `loader_chips_s` is what the workers deliver while nothing learns, `network_chips_s` what the network (on
the GPU where there is one) takes of a batch that is there already, forwards, backwards and step; `ratio` should be 2 or more, so that
input is never what a training waits for. Each of the two is a process of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common import child, hardware, make_scene, parse, seconds, tell, workplace

RECIPE = Path(__file__).parents[1] / "configs" / "train" / "default.yaml"
SIDE, IMAGES, BATCHES = 8192, 24, 60
QUICK = {"side": 1024, "images": 4, "batches": 4}


def make_corpus(folder: Path, side: int, images: int) -> None:
    """A scene with polygons (layout ``scenes``) and small labelled images (layout ``set``)."""
    import geopandas
    import numpy as np
    import rasterio
    import shapely
    import yaml
    from PIL import Image

    (folder / "town").mkdir()
    with rasterio.open(make_scene(folder / "town" / "town.tif", side)) as file:
        left, top, pixel = file.transform.c, file.transform.f, file.transform.a
        crop, crs = file.read(window=rasterio.windows.Window(0, 0, 512, 512)), file.crs
    corners = np.arange(0, side, 128) * pixel
    boxes = [shapely.box(left + x, top - y - 60 * pixel, left + x + 60 * pixel, top - y) for x in corners for y in corners]
    geopandas.GeoDataFrame({"kind": "roof"}, index=range(len(boxes)), geometry=boxes, crs=crs).to_file(folder / "town" / "labels.gpkg")
    facts = {"title": "Made up", "licence": "CC BY 4.0", "attribution": "OpenAerialMap contributors"}
    town = facts | {
        "images": "town.tif",
        "polygons": {"path": "labels.gpkg", "column": "kind", "outside": ["low_vegetation", "tree"]},
        "classes": {"roof": ["building"]},
    }
    (folder / "town" / "scenes.yaml").write_text(yaml.safe_dump(town))
    codes = {code: {"name": name, "allowed": [name]} for code, name in ((2, "building"), (4, "tree"))}
    names = [f"image_{number:02}" for number in range(images)]
    split = {"train": names, "val": names[:1]}
    for part in ("images", "labels"):
        (folder / "small" / part).mkdir(parents=True)
    (folder / "small" / "set.yaml").write_text(yaml.safe_dump(facts | {"gsd_m": pixel, "codes": codes, "split": split}))
    labels = np.kron(np.random.default_rng(0).choice([2, 4], (8, 8)), np.ones((64, 64))).astype(np.uint8)
    for number, name in enumerate(names):
        Image.fromarray(np.rot90(crop.transpose(1, 2, 0), number)).save(folder / "small" / "images" / f"{name}.jpg")
        Image.fromarray(labels).save(folder / "small" / "labels" / f"{name}.png")


def recipe(folder: Path) -> dict[str, Any]:
    """The default model's, on the made-up data."""
    from geoseg.options import read_table

    sources = [{"set": "town", "layout": "scenes"}, {"set": "small"}]
    return read_table(RECIPE) | {"data": str(folder), "sources": sources, "validation": [{"name": "small", "set": "small"}]}


def load(task: dict[str, Any]) -> dict[str, Any]:
    """The loader alone, after a first batch from each worker."""
    from geoseg.training.data import Data, loader
    from geoseg.training.recipe import read_options

    options = read_options(recipe(Path(task["folder"])))
    data = Data(options, options.model.classes(), stride=32)
    first = 2 * max(1, options.workers)  # batches that a worker has made ahead are no part of the measurement
    batches = iter(loader(data.chips(0, first + task["batches"]), options, range(first + task["batches"])))
    for _ in range(first):
        next(batches)
    took = seconds(lambda: [next(batches) for _ in range(task["batches"])])
    return {"chips_s": round(task["batches"] * options.chips.batch / took, 1), "workers": options.workers}


def learn(task: dict[str, Any]) -> dict[str, Any]:
    """The network alone, on one batch."""
    import torch

    from geoseg.networks import build
    from geoseg.training.recipe import read_options

    options = read_options(recipe(Path(task["folder"])))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size, model = (options.chips.batch, len(options.model.bands), options.chips.size, options.chips.size), options.model
    network = build(model.architecture, size[1], len(model.classes()), **model.options).to(device, memory_format=torch.channels_last)
    pixels = torch.randn(size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, len(model.classes()), (size[0], *size[2:]), device=device)
    optimizer = torch.optim.AdamW(network.parameters())

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=options.multiplied_in == "bf16-mixed"):
                loss = torch.nn.functional.cross_entropy(network(pixels), labels)
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    steps(2)
    took = seconds(lambda: steps(task["batches"]))
    return {"chips_s": round(task["batches"] * size[0] / took, 1)}


def measure(*, quick: bool) -> dict[str, Any]:
    """Both, and their ratio."""
    sizes = QUICK if quick else {"side": SIDE, "images": IMAGES, "batches": BATCHES}
    with workplace() as folder:
        make_corpus(folder, sizes["side"], sizes["images"])
        loaded, learnt = (
            child("benchmarks.train", {"kind": kind, "folder": str(folder), "batches": sizes["batches"]}) for kind in ("load", "learn")
        )
    return {
        "loader_chips_s": loaded["chips_s"],
        "network_chips_s": learnt["chips_s"],
        "ratio": round(loaded["chips_s"] / learnt["chips_s"], 2),
        "workers": loaded["workers"],
        "hardware": hardware(),
    }


if __name__ == "__main__":
    arguments = parse(__doc__.splitlines()[0])
    if arguments.child:
        task = json.loads(arguments.child)
        print(json.dumps({"load": load, "learn": learn}[task.pop("kind")](task)))
    else:
        tell(measure(quick=arguments.quick), arguments.json)
