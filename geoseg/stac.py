"""Scenes that STAC items describe."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from geoseg.errors import OptionsError

_GEOTIFF = re.compile(r"image/(tiff|vnd\.stac\.geotiff)\s*(;|$)", re.IGNORECASE)  # also cloud-optimized: that is a parameter behind
_ROLES = {"data", "visual"}  # against thumbnail, overview, metadata, data-mask and the like
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE)  # two letters or more: C: is a drive


class _Link(BaseModel):
    rel: str
    href: str


class _Asset(BaseModel):
    href: Annotated[str, Field(min_length=1)]
    type: str | None = None
    roles: tuple[str, ...] | None = None

    @property
    def fits(self) -> bool:
        """Whether it is a GeoTIFF, by its media type or else its name, and nothing says that it is not the scene itself."""
        tiff = _GEOTIFF.match(self.type) if self.type else self.href.lower().endswith((".tif", ".tiff"))
        return bool(tiff) and (not self.roles or not _ROLES.isdisjoint(self.roles))


class _Item(BaseModel):
    type: Literal["Feature"]
    id: str
    assets: dict[str, _Asset]
    links: tuple[_Link, ...] = ()


class _ItemCollection(BaseModel):
    type: Literal["FeatureCollection"]
    features: tuple[_Item, ...]
    links: tuple[_Link, ...] = ()


_FILE: TypeAdapter[_Item | _ItemCollection] = TypeAdapter(Annotated[_Item | _ItemCollection, Field(discriminator="type")])


def scenes(path: str | Path, asset: str | None = None) -> list[Path]:
    """Files of the items in a STAC Item or ItemCollection (STAC 1.1, Item and Common Metadata; ItemCollection of the STAC API).

    Of each item it is the asset that is named, or else the only GeoTIFF: by media type, or by its name where it has none, with
    the role ``data`` or ``visual``, or no role at all. A relative ``href`` begins at the item's ``self`` link if that is a local
    file, else at the folder of the STAC file. Percent signs are undone unless there is a file of exactly that name.

    Args:
        path: JSON file.
        asset: key of the asset; None for the only one that fits.

    Returns:
        One path for each item, in their order; whether there is such a file is not asked.

    Raises:
        OptionsError: if it is no STAC Item or ItemCollection, is one page of several, an item has no such asset, none or several
            that fit, or its file is not on this machine.
    """
    try:
        read = _FILE.validate_json(Path(path).read_bytes())
    except OSError as error:
        raise OptionsError(f"{path}: cannot be read ({error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:]))
        raise OptionsError(
            f"{path}: {where + ': ' if where else ''}{first['msg']}; expected a STAC Item or ItemCollection, such as "
            "`stac-client search --save` writes"
        ) from error
    if isinstance(read, _Item):
        return [_scene(read, asset, path)]
    if any(link.rel == "next" for link in read.links):
        raise OptionsError(f"{path}: is one page of several (it links to the next); save them all, as `stac-client search --save` does")
    return [_scene(item, asset, path) for item in read.features]


def _scene(item: _Item, key: str | None, path: str | Path) -> Path:
    """The file of an item.

    Raises:
        OptionsError: if that is not clear, or not here.
    """
    keys = [name for name, one in item.assets.items() if one.fits] if key is None else [key]
    if len(keys) != 1 or keys[0] not in item.assets:
        seen = "no asset" if not keys else f"no asset {key!r}" if key else f"several GeoTIFFs ({', '.join(keys)})"
        wanted = " that is a GeoTIFF with role data or visual" if not keys else ""
        known = f"name one of {', '.join(item.assets)} with --asset" if item.assets else "it has none at all"
        raise OptionsError(f"{path}: item {item.id!r} has {seen}{wanted}; {known}")
    folder = Path(path).parent
    here = next((_local(link.href, folder) for link in item.links if link.rel == "self"), None)
    href = item.assets[keys[0]].href
    file = _local(href, here.parent if here else folder)
    if file is None:
        raise OptionsError(
            f"{path}: item {item.id!r}: {href} is not on this machine, and geoseg contacts no network; fetch it first, for example "
            "with `stac-asset download`, and list what it wrote"
        )
    return file


def _local(href: str, folder: Path) -> Path | None:
    """The local file that is meant; None if it is elsewhere."""
    if scheme := _SCHEME.match(href):
        host, slash, rest = href[scheme.end() :].removeprefix("//").partition("/")
        if scheme[1].lower() != "file" or host not in ("", "localhost") or not slash:
            return None
        href = "/" + rest
    written = folder / href
    if "%" in href and not os.path.exists(written):  # noqa: PTH110 that of Path raises where a name is too long
        written = folder / unquote(href)
    return Path(os.path.normpath(written))
