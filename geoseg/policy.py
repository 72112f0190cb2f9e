"""What may be opened, and how large it may be."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from geoseg.errors import SceneError

DTYPES: Final = ("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")
"""The pixel types a scene may have."""

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEAD = 1024
_VRT_BYTES = 64 * 2**20

_STRANGERS = {
    b"\x89PNG": "a PNG",
    b"\xff\xd8\xff": "a JPEG",
    b"\x00\x00\x00\x0cjP": "a JPEG 2000",
    b"\xff\x4f\xff\x51": "a JPEG 2000",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF": "an HDF5",
    b"CDF": "a netCDF",
    b"%PDF": "a PDF",
    b"SQLite format 3": "an SQLite or GeoPackage",
}

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

_VRT_TAGS = frozenset(
    {"VRTDataset", "SRS", "GeoTransform", "Metadata", "MDI", "OverviewList", "VRTRasterBand", "MaskBand", "ColorInterp", "NoDataValue"}
    | {"HideNoDataValue", "Description", "UnitType", "SimpleSource", "ComplexSource", "SourceFilename", "SourceBand", "SourceProperties"}
    | {"SrcRect", "DstRect", "NODATA", "UseMaskBand", "CategoryNames", "Category", "ColorTable", "Entry"}
)
_VRT_ATTRIBUTES = frozenset(
    {"rasterXSize", "rasterYSize", "dataAxisToSRSAxisMapping", "coordinateEpoch", "key", "domain", "format", "resampling"}
    | {"dataType", "band", "subClass", "blockXSize", "blockYSize", "relativeToVRT", "shared"}
    | {"RasterXSize", "RasterYSize", "DataType", "BlockXSize", "BlockYSize", "xOff", "yOff", "xSize", "ySize", "c1", "c2", "c3", "c4"}
)


@dataclass(frozen=True, slots=True)
class Policy:
    """What is opened without asking, and what is too large to start with.

    Attributes:
        allow_vrt: open a GDAL VRT mosaic whose sources are TIFFs under its own folder.
        sidecars: let files beside a TIFF speak too: ``.msk`` (mask), ``.ovr`` (overviews) and world files. ``.aux.xml`` is never read:
            it may replace the georeference and name any other file.
        max_pixels: of the scene, rows times columns.
        max_bands: of the file.
        max_blocks: tiles or strips of the file.
        max_block_bytes: memory of one decoded tile or strip, all bands that are stored together.
        max_expansion: how many times larger than the whole file one decoded tile or strip of more than 64 MiB may be; beyond that it
            is taken for a decompression bomb.
        dtypes: allowed pixel types.
    """

    allow_vrt: bool = False
    sidecars: bool = False
    max_pixels: int = 100_000_000_000
    max_bands: int = 64
    max_blocks: int = 100_000_000
    max_block_bytes: int = 512 * 2**20
    max_expansion: int = 1000
    dtypes: tuple[str, ...] = DTYPES


@dataclass(frozen=True, slots=True)
class Admission:
    """A file that may be opened.

    Attributes:
        address: its absolute path, links resolved.
        driver: the only GDAL driver it may be opened with.
        sources: for a VRT the absolute paths of the TIFFs it is made of, sorted.
    """

    address: str
    driver: str
    sources: tuple[str, ...] = ()


def admit(path: str | os.PathLike[str], policy: Policy) -> Admission:
    """Judge a path by its name, its kind and its first bytes, before GDAL sees it.

    Raises:
        SceneError: if it is no local regular file, or no TIFF (nor a VRT, where those are allowed).
    """
    text = os.fspath(path)
    _refuse_virtual(text)
    address = _regular_file(text)
    head = _head(text, address)
    if head.startswith(_TIFF) and len(head) > len(_TIFF[0]) + 4:
        if policy.sidecars:
            _check_sidecars(text, address)
        return Admission(address, "GTiff")
    if policy.allow_vrt and _bare(head).startswith(b"<VRTDataset"):
        return Admission(address, "VRT", _vrt_sources(text, address))
    raise SceneError(f"{printable(text)}: {_what_else(head)}")


def printable(text: str) -> str:
    """The text in one line, safe to show on a terminal: no control characters, no line breaks."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


def hidden_sidecars(address: str) -> tuple[str, ...]:
    """Names of files beside a TIFF that would change its mask or place if sidecars were read."""
    path = Path(address)
    world = [path.with_suffix(suffix) for suffix in (".tfw", ".tifw", ".wld")]
    return tuple(file.name for file in (Path(f"{address}.msk"), *world) if file.is_file())


def _refuse_virtual(text: str) -> None:
    shown = printable(text)
    prefixed = re.match(r"\w{2,}:", text) and not os.path.lexists(text)
    if "://" in text or prefixed or os.path.abspath(text).startswith("/vsi"):  # noqa: PTH100 - text is what GDAL would get
        raise SceneError(f"{shown}: is an address of a GDAL driver or virtual file system; geoseg reads local files, download it first")
    if "\0" in text or not _is_utf8(text):
        raise SceneError(f"{shown}: the file name is not valid UTF-8 text; rename the file")


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _regular_file(text: str) -> str:
    """Absolute path, links resolved."""
    shown = printable(text)
    try:
        path = Path(text).resolve(strict=True)
        kind = stat.S_IFMT(path.lstat().st_mode)
    except FileNotFoundError as error:
        raise SceneError(f"{shown}: no such file") from error
    except (OSError, RuntimeError) as error:
        raise SceneError(f"{shown}: cannot be found ({_reason(error)})") from error
    if kind != stat.S_IFREG:
        raise SceneError(f"{shown}: is {_KINDS.get(kind, 'no regular file')}, expected a GeoTIFF file")
    return str(path)


def _head(text: str, address: str) -> bytes:
    try:
        with Path(address).open("rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise SceneError(f"{printable(text)}: cannot be read ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or printable(str(error))


def _bare(head: bytes) -> bytes:
    return head.lstrip(b"\xef\xbb\xbf \t\r\n")


def _what_else(head: bytes) -> str:
    """What a file is that is no usable TIFF, and what to do."""
    text = _bare(head).lower()
    if not head:
        return "is empty (0 bytes); fetch it again"
    if head.startswith(_TIFF) or head[:2] in (b"II", b"MM"):
        return f"is cut off or damaged in its header ({len(head)} bytes read); fetch it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a git LFS pointer, not the raster it stands for; run 'git lfs pull'"
    if text.startswith((b"<!doctype html", b"<html")):
        return "is a web page, perhaps the error message of a failed download; fetch it again"
    if text.startswith(b"<vrtdataset"):
        return "is a GDAL VRT, which can read any file; if you trust it, pass --allow-vrt"
    if text.startswith(b"<"):
        return "is XML, not a raster; expected a GeoTIFF"
    if not any(head):
        return "starts with zero bytes only, perhaps an unfinished copy; fetch it again"
    for magic, kind in _STRANGERS.items():
        if head.startswith(magic):
            return f"is {kind} file, expected a GeoTIFF; convert it with gdal_translate"
    return f"is not a TIFF (it starts with {head[:8]!r}); expected a GeoTIFF"


def _check_sidecars(text: str, address: str) -> None:
    """A mask or overview file is opened by GDAL with any driver: let it be a TIFF."""
    for suffix in (".msk", ".ovr", ".msk.ovr"):
        sidecar = address + suffix
        if os.path.lexists(sidecar) and not _head(text, _regular_file(sidecar)).startswith(_TIFF):
            raise SceneError(f"{printable(text)}: the file {printable(Path(sidecar).name)} beside it is not a TIFF; remove it")


def _vrt_sources(text: str, address: str) -> tuple[str, ...]:
    """Paths of the TIFFs of a plain mosaic.

    Raises:
        SceneError: if the VRT is more than a mosaic, or names anything but TIFFs under its own folder.
    """
    shown = printable(text)
    document = _vrt_document(shown, address)
    for element in document.iter():
        plain = element.get("subClass", "VRTSourcedRasterBand") == "VRTSourcedRasterBand"
        if element.tag not in _VRT_TAGS or not _VRT_ATTRIBUTES.issuperset(element.keys()) or not plain:
            found = printable(f"{element.tag} {' '.join(element.keys())}")
            raise SceneError(f"{shown}: is more than a mosaic of TIFFs (it has <{found[:80]}>); build one with gdalbuildvrt")
    folder = Path(address).parent
    sources = set()
    for element in document.iter("SourceFilename"):
        name = (element.text or "").strip()
        try:
            _refuse_virtual(name)
            source = admit(folder / name if element.get("relativeToVRT") == "1" else name, Policy()).address
        except SceneError as error:
            raise SceneError(f"{shown}: has a source that cannot be used: {error}") from error
        if not Path(source).is_relative_to(folder) or name != element.text:
            raise SceneError(f"{shown}: has the source {printable(name)}, which is not under its own folder; move the sources there")
        sources.add(source)
    if not sources:
        raise SceneError(f"{shown}: is a VRT without any source; build one with gdalbuildvrt")
    return tuple(sorted(sources))


def _vrt_document(shown: str, address: str) -> ElementTree.Element:
    """The parsed XML. What GDAL's parser may read otherwise than ours (entities, comments, CDATA) is refused."""
    try:
        with Path(address).open("rb") as file:
            xml = file.read(_VRT_BYTES + 1)
        if len(xml) > _VRT_BYTES or b"<!" in xml:
            raise SceneError(f"{shown}: is too large for a mosaic, or has comments or entities; build one with gdalbuildvrt")
        return ElementTree.fromstring(xml)
    except OSError as error:
        raise SceneError(f"{shown}: cannot be read ({_reason(error)})") from error
    except ElementTree.ParseError as error:
        raise SceneError(f"{shown}: is a VRT that does not parse ({error})") from error
