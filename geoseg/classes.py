"""A class raster of any origin, described, and read as class ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from rasterio.enums import ColorInterp, MaskFlags

from geoseg.errors import BandsError, OptionsError, SceneError
from geoseg.legend import NODATA, Legend, LegendClass, identifiers, spread_colour
from geoseg.policy import Policy, admit, printable
from geoseg.polygons.kernel import Kernel
from geoseg.scene import (
    Scene,
    check_size,
    common_dtype,
    environment,
    explained,
    georeference,
    layout_notes,
    nodata_of,
    pixel_size_m,
    quietly_open,
)
from geoseg.window import Window

ROWS = 512
"""Height of the bands that class rasters are read in."""

_MOST = 255  # classes
_UNKNOWN = 255  # confidence
_TOP = 254  # confidence 1
_SIDE_BYTES = 16 * 2**20
_PLAIN_TAGS = ("TIFFTAG_", "AREA_OR_POINT")
_ZERO_NOTE = "it states no nodata value: 0 is taken for a class; pass --nodata 0 if it means no data"
_VALUE, _NAME = "5", "2"  # uses of a column of GDAL's attribute tables (GDALRATFieldUsage): value, class name
_RED, _GREEN, _BLUE = "6", "7", "8"


@dataclass(frozen=True, slots=True)
class _Look:
    """What a file says of a value."""

    name: str = ""
    title: str = ""
    rgb: tuple[int, int, int] | None = None


@dataclass(frozen=True, eq=False)
class ClassRaster:
    """A band of whole numbers, each of which means a class.

    Attributes:
        scene: the band.
        legend: its classes. Their ids are the numbers in the raster if those lie between 1 and 255, otherwise 1, 2, ... in
            ascending order of the numbers.
        values: the number in the raster of each class id.
        own: the facts that geoseg stated in the file, if it made it.
        warnings: sentences about what was assumed, without the path.
    """

    scene: Scene
    legend: Legend
    values: Mapping[int, int]
    own: Mapping[str, str]
    warnings: tuple[str, ...]

    @classmethod
    def describe(
        cls,
        path: str | Path,
        *,
        band: int | None = None,
        nodata: float | None = None,
        legend: Legend | None = None,
        policy: Policy | None = None,
    ) -> ClassRaster:
        """Look at a class raster, and find out by reading it once which classes occur.

        Outside is where the file's nodata value, mask or alpha says so. Where the file has no nodata value, 0 is a class
        like any other, unless a legend is given or the file is one of geoseg's: these have no class 0, and 0 is outside.
        Names come from ``legend``, otherwise from the file's ``.aux.xml`` if it is one of geoseg's or sidecars are
        trusted, otherwise they are ``class_1`` and so on; colours come from the legend, the palette, or are spread evenly.

        Args:
            path: a GeoTIFF.
            band: its number, from 1; None if there is only one besides alpha.
            nodata: the value that is outside, instead of the file's.
            legend: the classes; every value that occurs, but 0, has to be in it.
            policy: what may be opened.

        Raises:
            SceneError: if the file may not or cannot be opened, holds no whole numbers, no class, or more than 255.
            BandsError: if it has several bands, and none is chosen, or not the chosen one.
            OptionsError: if ``nodata`` cannot occur, or a value is not in the legend.
        """
        scene, tags, palette = _look(path, band, policy or Policy())
        if nodata is not None:
            scene = replace(scene, nodata=_possible(nodata, scene))
        own = {key: text for key, text in tags.items() if not key.startswith(_PLAIN_TAGS)} if "GEOSEG_VERSION" in tags else {}
        found, zero = _survey(scene), legend is None and not own
        classes = [value for value in found if zero or value != NODATA]
        if legend is not None:
            strangers = sorted(set(classes) - set(legend.ids))
            if strangers:
                raise OptionsError(
                    f"{scene.path}: holds the value {strangers[0]}, legend {legend.name!r} has {', '.join(map(str, legend.ids))}; "
                    "add it to the legend, or pass --nodata if it means no data"
                )
            return cls(scene, legend, {}, own, scene.warnings)
        named = _side_looks(scene.address) if own or scene.policy.sidecars else {}
        wanted = sorted({*classes, *(value for value in named if own and NODATA < value <= _MOST)})
        if not wanted:
            raise SceneError(f"{scene.path}: holds no class, all its pixels are without data; nothing can be drawn")
        if len(wanted) > _MOST:
            raise _too_many(scene)
        ids = wanted if wanted[0] >= 1 and wanted[-1] <= _MOST else range(1, len(wanted) + 1)
        numbers = dict(zip(ids, wanted, strict=True))
        notes = () if not zero or NODATA not in classes else (_ZERO_NOTE,)
        made = _legend(Path(scene.path).stem, numbers, named, palette)
        return cls(scene, made, {i: value for i, value in numbers.items() if i != value}, own, (*scene.warnings, *notes))

    def read(self, windows: Iterable[Window]) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
        """Class ids (h, w) of windows in turn, 0 outside.

        Raises:
            ReadError: if a block of the file cannot be decoded.
        """
        pairs = sorted((self.values.get(c.id, c.id), c.id) for c in self.legend.classes)
        known, ids = np.array([value for value, _ in pairs], np.int64), np.array([i for _, i in pairs], np.uint8)
        with self.scene.reader() as reader:
            for window in windows:
                pixels, valid = reader.read(window)
                yield window, _to_ids(pixels[0], valid, known, ids)


def band_of(path: str | Path, *, band: int | None = None, policy: Policy | None = None) -> Scene:
    """The band of a class raster as a scene of whole numbers; a palette does not matter, and nothing is read.

    Raises:
        SceneError: if the file may not or cannot be opened, or holds no whole numbers.
        BandsError: if it has several bands, and none is chosen, or not the chosen one.
    """
    return _look(path, band, policy or Policy())[0]


def rows_of(scene: Scene) -> Iterator[Window]:
    """Windows over the full width, from top to bottom."""
    yield from Window.of(scene.shape).split(ROWS, scene.shape[1])


def confidence_bytes(pixels: NDArray[Any], valid: NDArray[np.bool_], scene: Scene) -> NDArray[np.uint8]:
    """Confidence (1, h, w) as geoseg writes it: (h, w) uint8, 254 = 1.0, 255 = unknown.

    Raises:
        SceneError: if it is no confidence.
    """
    values = pixels[0]
    if values.dtype == np.uint8:
        return np.where(valid, values, np.uint8(_UNKNOWN))
    known = values[valid]
    if values.dtype.kind != "f" or (known.size and not (known.min() >= 0 and known.max() <= 1)):
        seen = f"{values.dtype} from {known.min():g} to {known.max():g}" if known.size else str(values.dtype)
        raise SceneError(f"{scene.path}: holds {seen}, expected confidence: floats from 0 to 1, or bytes with 254 = 1.0 and 255 = unknown")
    confidence = np.full(values.shape, _UNKNOWN, np.uint8)
    confidence[valid] = np.rint(_TOP * known)
    return confidence


def _look(path: str | Path, band: int | None, policy: Policy) -> tuple[Scene, dict[str, str], dict[int, tuple[int, int, int]]]:
    """The band as a scene, the file's tags and its palette.

    `Scene.describe` looks for measurements, and refuses a palette; here its numbers are what is wanted.
    """
    admission = admit(path, policy)
    name = printable(str(path))
    with ExitStack() as stack:
        stack.enter_context(explained(name, f"cannot be read as {admission.driver}", SceneError))
        stack.enter_context(environment(policy))
        dataset, placed = quietly_open(admission.address, admission.driver, policy)
        stack.enter_context(dataset)
        check_size(name, dataset, policy)
        for source in admission.sources:
            with quietly_open(source, "GTiff", policy)[0] as tile:
                check_size(f"{name}: its source {printable(source)}", tile, policy)
        alphas = [number for number, kind in enumerate(dataset.colorinterp, 1) if kind == ColorInterp.alpha]
        chosen = _only_band(name, dataset.count, alphas, band)
        dtype = common_dtype(name, dataset, (chosen,), policy)
        if dtype.startswith("float"):
            raise SceneError(
                f"{name}: has pixels of type {dtype}, expected whole numbers that mean classes; "
                "if they are whole, convert it with 'gdal_translate -ot Int16' (or Byte)"
            )
        grid, wkt, place_notes = georeference(name, dataset, placed)
        nodata, nodata_notes = nodata_of(admission.address, dataset, (chosen,), dtype)
        masked = any(MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags for flags in dataset.mask_flag_enums)
        tags = {key: printable(text) for key, text in dataset.tags().items()}
        colours = dataset.colormap(chosen) if dataset.colorinterp[chosen - 1] == ColorInterp.palette else {}
        notes = (*place_notes, *nodata_notes, *layout_notes(admission.address, dataset, policy))
    scene = Scene(
        path=name,
        address=admission.address,
        grid=grid,
        crs_wkt=wkt,
        bands=(chosen,),
        band_names=("class",),
        dtype=dtype,
        nodata=nodata,
        alpha=alphas[0] if alphas else None,
        masked=masked,
        pixel_m=pixel_size_m(grid),
        warnings=notes,
        policy=policy,
        sources=admission.sources,
    )
    return scene, tags, {value: (red, green, blue) for value, (red, green, blue, _) in colours.items()}


def _only_band(name: str, count: int, alphas: list[int], band: int | None) -> int:
    if band is not None and not 1 <= band <= count:
        raise BandsError(f"{name}: has bands 1 to {count}, band {band} was asked for; choose one of them with --band")
    others = [number for number in range(1, count + 1) if number not in alphas]
    if band is None and len(others) != 1:
        raise BandsError(f"{name}: has {len(others)} bands, expected one band of classes; say which with --band")
    return others[0] if band is None else band


def _possible(nodata: float, scene: Scene) -> float:
    limits = np.iinfo(scene.dtype)
    if not (float(nodata).is_integer() and limits.min <= nodata <= limits.max):
        raise OptionsError(f"{scene.path}: its pixels are {scene.dtype}, which cannot be {nodata:g}; give a --nodata that occurs")
    return float(nodata)


def _survey(scene: Scene) -> list[int]:
    """The values that occur where there is data, ascending.

    Raises:
        SceneError: if there are too many.
    """
    known, count = np.zeros(_MOST + 2, np.int64), 0
    with scene.reader() as reader:
        for window in rows_of(scene):
            count = _meet(*reader.read(window), known, count)
            if count > _MOST + 1:
                raise _too_many(scene)
    values: list[int] = np.sort(known[:count]).tolist()
    return values


def _too_many(scene: Scene) -> SceneError:
    return SceneError(
        f"{scene.path}: holds more than {_MOST} different values, expected at most {_MOST} classes; "
        "is it a class raster? group its values first, or choose another --band"
    )


def _side_looks(address: str) -> dict[int, _Look]:
    """Names and colours of values from the ``.aux.xml`` beside a raster, which is only read as text; empty if there is none.

    Raises:
        SceneError: if it cannot be understood.
    """
    side = Path(f"{address}.aux.xml")
    if not side.is_file():
        return {}
    try:
        with side.open("rb") as file:
            xml = file.read(_SIDE_BYTES + 1)
        if len(xml) > _SIDE_BYTES or b"<!" in xml:
            raise SceneError(
                f"{printable(str(side))}: is too large for class names, or has comments or entities; move it away, or give a --legend"
            )
        band = ElementTree.fromstring(xml).find("PAMRasterBand")
    except (OSError, ElementTree.ParseError) as error:
        raise SceneError(f"{printable(str(side))}: cannot be read ({printable(str(error))}); move it away, or give a --legend") from error
    if band is None:
        return {}
    categories = [printable(item.text or "") for item in band.findall("CategoryNames/Category")]
    looks = {value: _Look(text, text) for value, text in enumerate(categories) if text}
    table = band.find("GDALRasterAttributeTable")
    return looks if table is None else looks | _table_looks(table)


def _table_looks(table: ElementTree.Element) -> dict[int, _Look]:
    """The rows of GDAL's raster attribute table."""
    uses = [field.findtext("Usage", "").strip() for field in table.findall("FieldDefn")]
    titles = [number for number, field in enumerate(table.findall("FieldDefn")) if field.findtext("Name", "") == "Title"]
    looks = {}
    for row in table.findall("Row"):
        cells = [printable(cell.text or "") for cell in row.findall("F")]
        facts = dict(zip(uses, cells, strict=False))
        try:
            value = int(float(facts[_VALUE]))
            rgb = tuple(int(float(facts[use])) for use in (_RED, _GREEN, _BLUE)) if {_RED, _GREEN, _BLUE} <= facts.keys() else None
        except (KeyError, ValueError, OverflowError):  # a row without a value names nothing
            continue
        name = facts.get(_NAME, "")
        title = cells[titles[0]] if titles and titles[0] < len(cells) else name
        sound = rgb is not None and all(0 <= shade <= 255 for shade in rgb)
        looks[value] = _Look(name, title, (rgb[0], rgb[1], rgb[2]) if rgb is not None and sound else None)
    return looks


def _legend(name: str, numbers: Mapping[int, int], named: Mapping[int, _Look], palette: Mapping[int, tuple[int, int, int]]) -> Legend:
    """A legend of ids that stand for numbers, with what the file says of these."""
    classes: list[LegendClass] = []
    for class_id, value in numbers.items():
        look = named.get(value, _Look())
        shade = look.rgb or palette.get(value) or spread_colour(class_id)
        known = {c.name for c in classes}
        for identifier in identifiers(look.name, value):
            if identifier in known:
                continue
            with suppress(ValidationError):
                title = look.title or look.name or f"Class {value}"
                classes.append(LegendClass(id=class_id, name=identifier, title=title, colour="#{:02x}{:02x}{:02x}".format(*shade)))
                break
    return Legend(name=name, classes=tuple(classes))


@Kernel
def _meet(pixels: NDArray[Any], valid: NDArray[np.bool_], known: NDArray[np.int64], count: int) -> int:
    """Add the values of valid pixels (1, h, w) that are not among the first ``count`` of ``known``; stop when that is full."""
    last, met = np.int64(0), False
    for row in range(valid.shape[0]):
        for col in range(valid.shape[1]):
            value = np.int64(pixels[0, row, col])
            if not valid[row, col] or (met and value == last):
                continue
            last, met = value, True
            place = 0
            while place < count and known[place] != value:
                place += 1
            if place == count:
                known[count] = value
                count += 1
                if count == len(known):
                    return count
    return count


@Kernel
def _to_ids(values: NDArray[Any], valid: NDArray[np.bool_], known: NDArray[np.int64], ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The id of each valid value (h, w); 0 for others and for what is not in ``known``, which ascends."""
    classes = np.zeros(values.shape, np.uint8)
    last, its_id = known[0], ids[0]
    for row in range(values.shape[0]):
        for col in range(values.shape[1]):
            if valid[row, col]:
                value = np.int64(values[row, col])
                if value != last:
                    place = np.searchsorted(known, value)
                    last, its_id = value, np.uint8(0)
                    if place < len(known) and known[place] == value:
                        its_id = ids[place]
                classes[row, col] = its_id
    return classes
