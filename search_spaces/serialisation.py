"""Frozen dataclasses to JSON and back: unknown keys and wrong types are refused by name, nothing is guessed.

Supported field types: bool, int, float, str, None, ``Literal``, ``X | None``, ``tuple[X, ...]``, fixed tuples,
``dict[str, X]`` and nested dataclasses. A float field accepts an integer; nothing else is converted.
"""

import contextlib
import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from search_spaces.errors import UserError, closest

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Nested dictionaries, lists and scalars of a dataclass, ready for ``json.dumps``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return value


def from_versioned(cls: type[T], data: Any, schema: int, where: str) -> T:
    """`from_plain` of a mapping that also states its ``schema``; every message names ``where``.

    Raises:
        UserError: another schema, an unknown or missing key, a wrong type, or a value that ``cls`` refuses.
    """
    if not isinstance(data, dict) or data.get("schema") != schema:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise UserError(f"{where}: schema must be {schema}, got {found!r}")
    try:
        return from_plain(cls, {key: value for key, value in data.items() if key != "schema"}, where)
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith(where) else f"{where}: {message}") from error


@cache
def _hints(cls: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(cls)  # cached: resolving names is slow


def from_plain(cls: type[T], data: Any, where: str = "") -> T:
    """Dataclass ``cls`` from what ``to_plain`` gives; ``where`` names the place in error messages.

    Raises:
        UserError: an unknown or missing key, or a value of the wrong type.
    """
    label = where or cls.__name__
    if not isinstance(data, dict):
        raise UserError(f"{label}: expected a mapping, got {type(data).__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise UserError(f"{label}: unknown key {key!r}{closest(str(key), fields)}")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(_hints(typing.cast(Hashable, cls))[name], data[name], f"{label}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{label}: key {name!r} is missing")
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (hint,) = [argument for argument in arguments if argument is not type(None)]
        return _convert(hint, value, where)
    if origin is Literal:
        if value not in arguments or type(value) not in {type(argument) for argument in arguments}:
            raise UserError(f"{where} must be one of {', '.join(map(repr, arguments))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where} must be a list, got {value!r}")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(value) != len(arguments):
            raise UserError(f"{where} must have {len(arguments)} entries, got {len(value)}")
        return tuple(
            _convert(argument, item, f"{where}[{i}]")
            for i, (argument, item) in enumerate(zip(arguments, value, strict=True))
        )
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where} must be a mapping, got {value!r}")
        return {str(key): _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_plain(typing.cast(type[Any], hint), value, where)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # a whole number of more than 308 digits
            number = math.inf
        require_finite(**{where: number})
        return number
    if hint is Any:
        return value
    if type(value) is not hint:
        raise UserError(f"{where} must be {hint.__name__}, got {value!r}")
    return value


def read_json(path: str | Path) -> Any:
    """Parsed JSON file.

    Raises:
        UserError: the file is missing or not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except RecursionError as error:
        raise UserError(f"{path} is not valid JSON: nested too deeply") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise UserError(f"{path} is not valid JSON: {error}") from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write ``text`` under a temporary name beside ``path``, then rename: the file is whole or absent."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):  # gone after the rename, or never there
            temporary.unlink()


def write_json(path: str | Path, value: Any) -> None:
    """Write a dataclass or plain value as indented JSON, atomically."""
    write_text_atomic(path, json.dumps(to_plain(value), indent=2, allow_nan=False) + "\n")


def require(condition: bool, message: str) -> None:
    """Raise ``UserError(message)`` unless ``condition`` holds; the checks of the configuration dataclasses."""
    if not condition:
        raise UserError(message)


def require_finite(**values: float) -> None:
    """Refuse NaN and infinity, naming the field."""
    for name, value in values.items():
        require(math.isfinite(value), f"{name} must be a finite number, got {value}")
