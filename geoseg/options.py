"""A YAML table into a pydantic model, or a clear refusal."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from geoseg.errors import OptionsError

Options = TypeVar("Options", bound=BaseModel)


def nearest(word: str, words: Iterable[str]) -> str:
    """Say which of the words is meant, or list them: the last part of a refusal."""
    known = sorted(words)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"


def read_table(path: str | Path, *, _above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML file whose top level is a table.

    A table may stand on that of another file, which its key ``base`` names, seen from its folder: its values replace those of the other; of
    values that are tables in both, key by key.

    Raises:
        OptionsError: if a file is missing, is not YAML, holds something else than a table, or stands on itself.
    """
    place = Path(path).resolve()
    if place in _above:
        raise OptionsError(f"{path}: stands on itself by the key 'base' of {_above[-1]}; a base must be another file")
    try:
        table: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise OptionsError(f"{path}: not a readable YAML file ({str(error).splitlines()[0]})") from error
    if not isinstance(table, dict):
        raise OptionsError(f"{path}: holds a {type(table).__name__}, expected a table of 'key: value' lines")
    if "base" not in table:
        return table
    base = read_table(Path(path).parent / str(table.pop("base")), _above=(*_above, place))
    return base | {key: {**base[key], **value} if _tables(base.get(key), value) else value for key, value in table.items()}


def _tables(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def parse(model: type[Options], table: Mapping[str, Any], where: str) -> Options:
    """Make a model of a table.

    Args:
        model: pydantic model that forbids unknown keys.
        table: keys and values, nested like the model.
        where: file or other origin, first word of the refusal.

    Raises:
        OptionsError: if a key is unknown (with the nearest known one), missing, or of the wrong type.
    """
    try:
        return model.model_validate(dict(table))
    except ValidationError as error:
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _fields(model, first["loc"][:-1])
            raise OptionsError(f"{where}: unknown key {key!r}; {nearest(str(first['loc'][-1]), known)}") from error
        raise OptionsError(f"{where}: {key or 'table'}: {first['msg']}") from error


def _fields(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the model that lies at this place inside another one."""
    for part in loc:
        if isinstance(part, str) and part in model.model_fields:
            model = _inner(model.model_fields[part].annotation) or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation such as ``tuple[Model, ...]`` or ``Model | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _inner(part))), None)
