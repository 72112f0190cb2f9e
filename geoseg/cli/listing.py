"""The commands that list what there is: models and networks."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from geoseg.cli.words import AsJson


def models_list(as_json: AsJson = False) -> None:
    """List the models that can be used by name."""
    from geoseg.models import cards

    known = {
        name: {
            "version": card.version,
            "architecture": card.architecture,
            "bands": ", ".join(card.bands),
            "resolution_m": card.resolution_m,
            "classes": len(card.legend),
            "license": card.license,
        }
        for name, card in cards().items()
    }
    if as_json:
        typer.echo(json.dumps(known))
        return
    for name, facts in known.items():
        typer.echo(f"{name}  " + "  ".join(f"{key}: {value}" for key, value in facts.items()))


def models_show(name: Annotated[str, typer.Argument(help="Name of a model, its folder, or an ONNX file.")] = "default") -> None:
    """Print a model's card."""
    from geoseg.models import locate, read

    typer.echo(read(locate(name))[0].to_json(), nl=False)


def models_export(
    onnx: Annotated[Path, typer.Option(help="File of the result.", metavar="FILE.onnx")],
    name: Annotated[str, typer.Argument(help="Name of a model, or its folder.")] = "default",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model as an ONNX file that the QGIS plugin Deepness runs.

    The file carries the model's facts, takes tiles of the card's size, and is compared with the model before it appears.
    """
    from geoseg.verbs.export import export

    facts = export(name, onnx, force=force)
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    size, same = f"{facts['bytes'] / 1e6:.1f} MB", f"{100 * facts['same']:.3f} %"
    typer.echo(f"Wrote {facts['onnx']} ({size}); its classes are the model's on {same} of a tile of noise.")


def networks_list(as_json: AsJson = False) -> None:
    """List the architectures, the oldest first, with their papers and how large they are."""
    from geoseg.verbs.networks import networks

    found = networks()
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    rows = [("network", "year", "parameters", "GFLOP/Mpx", "stride", "reach", "paper"), *map(_network_row, found)]
    for name, year, *numbers, paper in rows:
        counts = "".join(f"{text:>{size}}" for text, size in zip(numbers, (12, 11, 8, 7), strict=True))
        line = f"{name:<{max(len(row[0]) for row in rows)}}  {year}{counts}  {paper}"
        typer.echo(line if width is None or len(line) <= width else f"{line[: width - 1]}…")
    typer.echo(
        "\nWith default options (encoders: ResNet-34; of DPT: ViT-B/16), 3 bands and 21 classes.\n"
        "GFLOP/Mpx: for 10⁶ pixels, in tiles of 512 x 512; of Mask R-CNN with 1000 proposals in each, without masks.\n"
        "Reach: how far a network looks, in pixels; ∞ where an answer depends on the whole tile.\n"
        "Mask R-CNN answers with instances, all others with classes.\n"
        "More on each: geoseg networks show NETWORK"
    )


def networks_show(
    name: Annotated[str, typer.Argument(help="Name of an architecture, see `geoseg networks list`.", metavar="NETWORK")],
    as_json: AsJson = False,
) -> None:
    """Say what an architecture is, which paper it follows, and what its options are."""
    from geoseg.verbs.networks import described

    facts = described(name)
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False, default=str))
        return
    size = min(shutil.get_terminal_size((100, 24)).columns, 100)
    parameters, operations, stride, reach = _network_numbers(facts)
    typer.echo(f"{facts['name']}: {facts['title']}")
    typer.echo(textwrap.fill(f"{facts['authors']} {facts['year']}: {facts['paper']}. {facts['reference']}", size, break_on_hyphens=False))
    typer.echo(f"{parameters} parameters, {operations} GFLOP/Mpx, stride {stride}, reach {reach}")
    for paragraph in facts["about"]:
        typer.echo(f"\n{textwrap.fill(paragraph, size)}")
    typer.echo("\nOptions:" if facts["options"] else "\nNo options.")
    indent = max(map(len, facts["options"]), default=0) + 4
    for option, words in facts["options"].items():
        text = f"{words['about']} [default: {words['default']}]".strip()
        first = f"  {option}".ljust(indent)
        typer.echo(textwrap.fill(text, size, initial_indent=first, subsequent_indent=" " * indent, break_on_hyphens=False))


def _network_row(facts: dict[str, Any]) -> tuple[str, ...]:
    first, *others = facts["authors"].split(", ")
    authors = f"{first} et al." if len(others) > 1 else " and ".join((first, *others))
    return (facts["name"], str(facts["year"]), *_network_numbers(facts), f"{authors}: {facts['paper']}")


def _network_numbers(facts: dict[str, Any]) -> tuple[str, str, str, str]:
    """Parameters, operations, stride and reach as people read them."""
    reach = "∞" if facts["reach"] is None else str(facts["reach"])
    return f"{facts['parameters'] / 1e6:.1f} M", f"{facts['gflop_per_mpx']:,.0f}", str(facts["stride"]), reach
