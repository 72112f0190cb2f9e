"""How fast each network is through `geoseg predict`, and how much memory it takes.

    python -m benchmarks.networks [--quick] [--json]

Every architecture with its default options, random weights and six classes, on an RGB scene of 768 x 768 pixels in nine tiles of
512, overlapping by 128; on the GPU where there is one. `mpx_per_s` are million pixels of the scene for each second of the stage that
reads, predicts and blends; `peak_gb` is the memory of the process, on a GPU that of the device. Each measurement is a process of its own.
Without `--quick` the table in docs/networks.md is written anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common import child, hardware, make_model, make_scene, parse, peak_gb, tell, workplace

SIDE, TILE, OVERLAP = 768, 512, 128
QUICK = ("linknet", "pspnet")
DOCUMENT = Path(__file__).parents[1] / "docs" / "networks.md"

HEAD = """# The networks

Written by `python -m benchmarks.networks`; what the columns of size mean is in `geoseg networks list`. Mpx/s and memory are those of
`geoseg predict` on 768 x 768 pixels with six classes, in nine tiles of 512 that overlap by 128, so that each pixel is seen about four
times; {hardware}, {precision}. Batch norms are folded. Peak memory is that of the {where}.

| network | paper | parameters, 10⁶ | GFLOP/Mpx | stride | reach | Mpx/s | memory, GB |
|---|---|--:|--:|--:|--:|--:|--:|
"""


def make(task: dict[str, Any]) -> dict[str, Any]:
    """A model folder; in a process of its own, so that its memory is not counted."""
    import torch

    from geoseg.networks import build

    with torch.device("meta"):
        stride: Any = build(task["network"], bands=3, classes=6).stride
    make_model(Path(task["folder"]) / "model", task["network"], {}, stride=stride, tile=TILE, overlap=OVERLAP)
    return {}


def predict(task: dict[str, Any]) -> dict[str, Any]:
    """The predicting stage of one network."""
    import torch

    from geoseg.verbs.predict import predict as verb

    folder = Path(task["folder"])
    manifest = verb(task["scene"], folder / "model", out=folder / "out", vectors=False, quicklook=False, force=True)
    gpu = torch.cuda.is_available()
    return {
        "mpx_per_s": round(task["side"] ** 2 / 1e6 / manifest["seconds"]["predict"], 4),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9 if gpu else peak_gb(), 2),
        "precision": manifest["facts"]["options"]["precision"],
    }


def measure(*, quick: bool) -> dict[str, Any]:
    """All networks, or a few small ones on a smaller scene."""
    from geoseg.networks import names

    facts: dict[str, Any] = {}
    side = TILE if quick else SIDE
    for name in QUICK if quick else names():
        with workplace() as folder:
            scene = make_scene(folder / "scene.tif", side)
            task = {"network": name, "scene": str(scene), "folder": str(folder), "side": side}
            child("benchmarks.networks", {"kind": "make", **task})
            facts[name] = child("benchmarks.networks", {"kind": "predict", **task})
    return facts | {"side": side, "hardware": hardware()}


def document(facts: dict[str, Any]) -> str:
    """The figures as a page of the documentation."""
    import torch

    from geoseg.verbs.networks import networks

    found = networks()
    where = "GPU" if torch.cuda.is_available() else "process"
    text = HEAD.format(hardware=facts["hardware"], precision=facts[found[0]["name"]]["precision"], where=where)
    for each in found:
        authors = each["authors"].split(", ")
        paper = f"{' and '.join(authors) if len(authors) < 3 else f'{authors[0]} et al.'} {each['year']}"
        columns = (
            f"`{each['name']}`",
            f"{each['title']} ({paper}, {each['reference']})",
            f"{each['parameters'] / 1e6:.1f}",
            f"{each['gflop_per_mpx']:,.0f}",
            str(each["stride"]),
            "∞" if each["reach"] is None else str(each["reach"]),
            f"{facts[each['name']]['mpx_per_s']:.3g}",
            f"{facts[each['name']]['peak_gb']:.2f}",
        )
        text += f"| {' | '.join(columns)} |\n"
    return text


if __name__ == "__main__":
    arguments = parse(__doc__.splitlines()[0])
    if arguments.child:
        task = json.loads(arguments.child)
        print(json.dumps({"make": make, "predict": predict}[task.pop("kind")](task)))
    else:
        measured = measure(quick=arguments.quick)
        tell(measured, arguments.json)
        if not arguments.quick:
            DOCUMENT.write_text(document(measured), encoding="utf-8")
