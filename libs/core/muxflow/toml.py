"""Write TOML, which the standard library only reads."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import Any


def dump(tree: Mapping[str, Any]) -> str:
    """Write a tree of tables, lists, strings, numbers and booleans as one section per top-level table."""
    return "\n".join(f"[{_key(name)}]\n" + pairs(table) for name, table in tree.items())


def parse_assignment(text: str) -> tuple[tuple[str, ...], Any]:
    """Read ``section.key=value``. A value that is not TOML is taken as a string. ValueError says how to write it."""
    path, separator, value = text.partition("=")
    keys = tuple(key.strip() for key in path.split("."))
    if not separator or len(keys) < 2 or not all(keys):
        raise ValueError(f"{text!r}: write section.key=value, such as executor.lease_s=2")
    try:
        return keys, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return keys, value


def assign(tree: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    """Put a value at a path, making the tables on the way. ValueError when the path leads through a value."""
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ValueError(f"{'.'.join(keys)}: {key} is not a table")  # noqa: TRY004 - the text is wrong, not a type
    tree[keys[-1]] = value


def pairs(table: Mapping[str, Any]) -> str:
    """Write the lines of one table, without its header."""
    return "".join(f"{_key(name)} = {_value(value)}\n" for name, value in table.items())


def _key(name: str) -> str:
    plain = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if plain else _string(name)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(name)} = {_value(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(inner) for inner in value) + "]"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
