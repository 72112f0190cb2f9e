"""Turn words into one call, and the result into a sentence."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, NoReturn

import typer

from geoseg import __version__
from geoseg.cli import learning, listing, mapping
from geoseg.cli.telling import printable
from geoseg.errors import GeosegError

app = typer.Typer(
    name="geoseg",
    help="Turn large aerial and satellite scenes into maps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
models_app = typer.Typer(help="The models that can be used by name.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models_app, name="models")
networks_app = typer.Typer(help="The architectures that can be trained.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(networks_app, name="networks")

app.command()(mapping.predict)
app.command()(mapping.vectorize)
app.command()(mapping.batch)
app.command()(mapping.info)
app.command()(mapping.plan)
app.command()(learning.train)
app.command()(learning.evaluate)
app.command()(learning.compare)
models_app.command("list")(listing.models_list)
models_app.command("show")(listing.models_show)
models_app.command("export")(listing.models_export)
networks_app.command("list")(listing.networks_list)
networks_app.command("show")(listing.networks_show)


def main() -> NoReturn:
    """Run the command line: a refusal is one line and exit status 2; anything else is a bug and keeps its traceback."""
    _hush_libraries()
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # before torch is loaded: its threads wait politely where cores are shared
    try:
        app(standalone_mode=True)
    except GeosegError as error:
        print(f"geoseg: error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("geoseg: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _hush_libraries() -> None:
    """Keep what GDAL and libtiff print by themselves off the terminal: it reaches the user in our own words.

    libtiff writes to file descriptor 2 past every handler, so Python's stderr moves to a copy of it and the descriptor
    itself goes nowhere. GEOSEG_DEBUG=1 leaves everything as it was.
    """
    logging.getLogger("rasterio").addHandler(logging.NullHandler())
    terminal = sys.__stderr__
    if os.environ.get("GEOSEG_DEBUG") or terminal is None or sys.stderr is not terminal:
        return
    try:
        copy = os.dup(terminal.fileno())
    except (OSError, ValueError):
        return
    terminal.flush()
    sys.stderr = os.fdopen(copy, "w", buffering=1, encoding=terminal.encoding, errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False) -> None:
    if version:
        typer.echo(f"geoseg {__version__}")
        raise typer.Exit
