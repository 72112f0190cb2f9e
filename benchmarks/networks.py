"""How fast each network is through `geoseg predict`, and how much memory it takes.

    python -m benchmarks.networks [--quick] [--json] [--table docs/networks.md]

Every architecture that answers with classes, with its default options, random weights and six classes, on an RGB scene of 640 x 640 pixels,
which are four tiles of 512 that overlap by 128 and reach beyond the scene; on the GPU where there is one. `mpx_per_s` are million pixels
that the network sees, those in two tiles counted twice, for each second of the stage that reads, predicts and blends; `peak_gb` is the
memory of the process, on a GPU that of the device. Each measurement is a process of its own. `--table` writes the figures as a page.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common import child, hardware, make_model, make_scene, parse, peak_gb, tell, workplace

TILE, OVERLAP, SIDE, TILES = 512, 128, 640, 4
QUICK = ("linknet", "pspnet")

HEAD = """# The networks

Written by `python -m benchmarks.networks --table docs/networks.md`; what the columns of size mean is in `geoseg networks list`. Mpx/s and
memory are those of `geoseg predict` with six classes: million pixels that the network sees, in four tiles of 512 x 512; of a large scene,
whose tiles overlap by 128 as here, they see each pixel 1.8 times. Batch norms are folded. Peak memory is that of the {where}; "–": not
measured. {machine}

| network | paper | parameters, 10⁶ | GFLOP/Mpx | stride | reach | Mpx/s | memory, GB |
|---|---|--:|--:|--:|--:|--:|--:|
"""


def predict(task: dict[str, Any]) -> dict[str, Any]:
    """The predicting stage of one network."""
    import torch

    from geoseg.verbs.predict import predict as verb

    folder = Path(task["folder"])
    manifest = verb(task["scene"], folder / "model", out=folder / "out", vectors=False, quicklook=False, force=True)
    gpu = torch.cuda.is_available()
    return {
        "mpx_per_s": round(TILES * TILE**2 / 1e6 / manifest["seconds"]["predict"], 4),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9 if gpu else peak_gb(), 2),
        "precision": manifest["facts"]["options"]["precision"],
    }


def measure(*, quick: bool) -> dict[str, Any]:
    """All networks, or a few small ones."""
    import torch

    from geoseg.networks import build, names

    facts: dict[str, Any] = {}
    for name in QUICK if quick else names():
        with torch.device("meta"):
            stride: Any = build(name, bands=3, classes=6).stride
        with workplace() as folder:
            make_model(folder / "model", name, {}, stride=stride, tile=TILE, overlap=OVERLAP)
            scene = make_scene(folder / "scene.tif", SIDE)
            facts[name] = child("benchmarks.networks", {"scene": str(scene), "folder": str(folder)})
    return facts | {"hardware": hardware()}


def document(facts: dict[str, Any]) -> str:
    """The figures as a page of the documentation."""
    import torch

    from geoseg.verbs.networks import networks

    where = "GPU" if torch.cuda.is_available() else "process"
    machine = f"On {facts['hardware']}, in {facts[QUICK[0]]['precision']}." if QUICK[0] in facts else ""
    text = HEAD.format(machine=machine, where=where).replace(" \n", "\n")
    for each in (each for each in networks() if each["answers"] == "classes"):
        speed = facts.get(each["name"])
        authors = each["authors"].split(", ")
        paper = f"{' and '.join(authors) if len(authors) < 3 else f'{authors[0]} et al.'} {each['year']}"
        columns = (
            f"`{each['name']}`",
            f"{each['title']} ({paper}, {each['reference']})",
            f"{each['parameters'] / 1e6:.1f}",
            f"{each['gflop_per_mpx']:,.0f}",
            str(each["stride"]),
            "∞" if each["reach"] is None else str(each["reach"]),
            f"{speed['mpx_per_s']:.3g}" if speed else "–",
            f"{speed['peak_gb']:.2f}" if speed else "–",
        )
        text += f"| {' | '.join(columns)} |\n"
    return text


if __name__ == "__main__":
    arguments = parse(__doc__.splitlines()[0], table="also write the figures as a page: a file of Markdown")
    if arguments.child:
        print(json.dumps(predict(json.loads(arguments.child))))
    else:
        measured = measure(quick=arguments.quick)
        tell(measured, arguments.json)
        if arguments.table:
            arguments.table.write_text(document(measured), encoding="utf-8")
