"""What holds before anything runs: a light import, a listing in step, a clean checkout."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "geoseg"
LIGHT = (
    *("errors", "window", "legend", "card", "deepness", "tiling", "blend", "policy", "cog", "report", "manifest", "scene"),
    *("polygons", "features", "geopackage", "vectors", "classes", "blocks", "instances"),
    *("confusion", "boundaries", "matching", "outlines", "references", "scores", "average_precision"),
)
LARGE_BYTES = 500_000
MAY_BE_LARGE = re.compile(r"demo/\w+\.tif|geoseg/models/[\w-]+/model\.safetensors")
MACHINE_PATH = re.compile(r"(?<![\w./])/(?:work|root|mnt|tmp/\w|home/\w|Users/\w)[\w./-]*")


def imported_by(statement: str) -> set[str]:
    """Names of the top-level packages that a fresh interpreter holds after a statement."""
    code = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def tracked() -> list[Path]:
    """Files that belong to the repository."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def rooms() -> dict[str, str]:
    """The modules of the package, as docs/architecture.md names them, and the first line of their docstrings."""
    listing = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix().removesuffix("__init__.py")
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if name and name != "_version.py":
            listing[name] = (docstring or "").partition("\n")[0]
    return listing


def test_importing_the_package_is_light() -> None:
    assert not imported_by("import geoseg") & {"torch", "dask", "numpy", "rasterio", "lightning"}


def test_the_command_line_starts_light() -> None:
    assert not imported_by("import geoseg.cli") & {"torch", "dask", "rasterio", "lightning", "pyogrio"}


def test_only_rooms_that_need_torch_import_it() -> None:
    there = [room for room in LIGHT if (PACKAGE / f"{room}.py").exists() or (PACKAGE / room).is_dir()]
    statement = "import " + ", ".join(f"geoseg.{room}" for room in there)
    assert not imported_by(statement) & {"torch", "torchvision", "lightning", "segmentation_models_pytorch", "distributed"}


def test_every_module_has_a_first_line() -> None:
    assert [name for name, line in rooms().items() if not line.endswith(".")] == []


def test_the_listing_has_every_module_with_its_first_line() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = {name: f"| `{name}` | {line} |" for name, line in rooms().items()}
    missing = [row for row in rows.values() if row not in page]
    assert not missing, "docs/architecture.md lacks these rows:\n" + "\n".join(missing)
    listed = set(re.findall(r"\| `([\w/]+(?:\.py|/))` \|", page))
    assert listed == set(rows), f"docs/architecture.md lists modules that do not exist: {sorted(listed - set(rows))}"


def test_no_tracked_file_is_large_or_names_a_machine() -> None:
    for path in tracked():
        name, content = path.relative_to(ROOT).as_posix(), path.read_bytes()
        assert len(content) <= LARGE_BYTES or MAY_BE_LARGE.fullmatch(name), f"{name} has {len(content)} bytes"
        if b"\0" not in content and path != Path(__file__):
            found = MACHINE_PATH.search(content.decode("utf-8"))
            assert found is None, f"{name} names a path of one machine: {found and found.group()}"


def test_the_package_does_not_look_outside_the_repository() -> None:
    assert [path.name for path in PACKAGE.rglob("*.py") if "../shared" in path.read_text(encoding="utf-8")] == []
