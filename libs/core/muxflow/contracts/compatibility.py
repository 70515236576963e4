"""Which changes of the schemas break those who were written against a release.

Compatible means: whoever reads by the new schemas understands all that was written by the old ones, and means the same
by it. So properties stay, new ones are optional, and a value may become less restricted but never more.
Examples and descriptions do not matter.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from muxflow.contracts.schemas import schema_file

Json = dict[str, Any]

_ADDRESS: Final = ("x-subject", "x-reply-to", "x-bucket", "x-key")
# Inclusive keyword, exclusive keyword, and 1 where more is narrower, -1 where less is.
_BOUNDS: Final = (
    ("minimum", "exclusiveMinimum", 1),
    ("maximum", "exclusiveMaximum", -1),
    ("minLength", None, 1),
    ("maxLength", None, -1),
    ("minItems", None, 1),
    ("maxItems", None, -1),
)
_EXACT: Final = ("pattern", "contentEncoding")
# Keyword of a schema inside, how a path shows it, and what it is where it is left out.
_INNER: Final[tuple[tuple[str, str, Json], ...]] = (
    ("items", "[]", {}),
    ("additionalProperties", "{}", {}),
    ("propertyNames", "{name}", {"type": "string"}),
)
_SUFFIX: Final = schema_file("")


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """The schemas as a release published them."""

    tag: str
    schemas: dict[str, Json]
    """Contract's name → schema."""


def schemas_in(folder: Path) -> dict[str, Json]:
    """Read a folder of schemas: contract's name → schema."""
    return {
        path.name.removesuffix(_SUFFIX): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob(f"*{_SUFFIX}"))
    }


def release_tags(repository: Path) -> tuple[str, ...]:
    """List the tags ``v*`` of a repository, newest version first; none outside git or without git."""
    if not (repository / ".git").exists():
        return ()
    # Without these settings git takes v1.0rc1 for newer than v1.0.
    prereleases = [part for suffix in ("-", ".dev", "a", "b", "rc") for part in ("-c", f"versionsort.suffix={suffix}")]
    try:
        return tuple(_git(repository, *prereleases, "tag", "--list", "v*", "--sort=-version:refname").split())
    except FileNotFoundError:
        return ()


def released(repository: Path, tag: str) -> Release:
    """Read the schemas of a tag. Raises `subprocess.CalledProcessError` if there is no such tag."""
    paths = _git(repository, "ls-tree", "-r", "--name-only", tag, "--", "schemas").splitlines()
    schemas = {
        path.removeprefix("schemas/").removesuffix(_SUFFIX): json.loads(_git(repository, "show", f"{tag}:{path}"))
        for path in paths
        if path.endswith(_SUFFIX)
    }
    return Release(tag=tag, schemas=schemas)


def incompatibilities(old: Mapping[str, Json], new: Mapping[str, Json]) -> list[str]:
    """List what breaks when `new` takes the place of `old`, a line each: where, and what."""
    broken = []
    for name in sorted(old):
        if name not in new:
            broken.append(f"{name}: removed")
            continue
        broken += [
            f"{name}: moved: {keyword} was {old[name].get(keyword)!r} and is {new[name].get(keyword)!r}"
            for keyword in _ADDRESS
            if old[name].get(keyword) != new[name].get(keyword)
        ]
        broken += _Comparison(old[name], new[name]).values(name, old[name], new[name])
    return broken


class _Comparison:
    """Compares two documents; each resolves its own references."""

    def __init__(self, old: Json, new: Json) -> None:
        self._old = old
        self._new = new

    def values(self, path: str, old: Json, new: Json) -> Iterator[str]:
        """Compare the values that two schemas accept."""
        arms = [_resolved(self._new, arm) for arm in _arms(_resolved(self._new, new))]
        for arm in (_resolved(self._old, arm) for arm in _arms(_resolved(self._old, old))):
            verdicts = [list(self._arm(path, arm, other)) for other in arms if _accepts_type(arm, other)]
            if not verdicts:
                yield f"{path}: no longer accepts {_type_of(arm)}"
            else:
                yield from min(verdicts, key=len)

    def _arm(self, path: str, old: Json, new: Json) -> Iterator[str]:
        yield from _narrowed_choice(path, old, new)
        yield from _narrowed_bounds(path, old, new)
        for keyword in _EXACT:
            narrowed = keyword in new or keyword == "contentEncoding"
            if narrowed and new.get(keyword) != old.get(keyword):
                yield f"{path}: {keyword} was {old.get(keyword)!r} and is {new.get(keyword)!r}"
        yield from self._properties(path, old, new)
        for keyword, step, otherwise in _INNER:
            if keyword in new:
                yield from self.values(f"{path}{step}", old.get(keyword, otherwise), new[keyword])

    def _properties(self, path: str, old: Json, new: Json) -> Iterator[str]:
        before, after = old.get("properties", {}), new.get("properties", {})
        for name in sorted(set(new.get("required", ())) - set(old.get("required", ()))):
            yield f"{path}.{name}: is required now"
        for name in before:
            where = f"{path}.{name}"
            if name not in after:
                yield f"{where}: removed"
                continue
            if (
                "default" in before[name]
                and "default" in after[name]
                and before[name]["default"] != after[name]["default"]
            ):
                yield f"{where}: default was {before[name]['default']!r} and is {after[name]['default']!r}"
            yield from self.values(where, before[name], after[name])


def _resolved(document: Json, schema: Json) -> Json:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    definition: Json = document["$defs"][reference.rpartition("/")[2]]
    return definition


def _arms(schema: Json) -> list[Json]:
    arms: list[Json] = schema.get("anyOf", [schema])
    return arms


def _accepts_type(old: Json, new: Json) -> bool:
    was, now = _type_of(old), _type_of(new)
    return now in (was, "anything") or (was, now) == ("integer", "number")


def _type_of(schema: Json) -> str:
    """Name the JSON type: msgspec leaves it out beside ``enum`` and in ``propertyNames``, where it is a string."""
    if "type" in schema:
        return str(schema["type"])
    return "string" if schema.keys() & {"enum", "pattern", "minLength", "maxLength"} else "anything"


def _narrowed_choice(path: str, old: Json, new: Json) -> Iterator[str]:
    if "enum" not in new:
        return
    if "enum" not in old:
        yield f"{path}: accepts only {new['enum']} now"
        return
    for choice in old["enum"]:
        if choice not in new["enum"]:
            yield f"{path}: no longer accepts {choice!r}"


def _narrowed_bounds(path: str, old: Json, new: Json) -> Iterator[str]:
    for inclusive, exclusive, direction in _BOUNDS:
        was, now = (_tightest(schema, inclusive, exclusive, direction) for schema in (old, new))
        if now > was:
            keyword = exclusive if exclusive in new else inclusive
            yield f"{path}: {keyword} is {new[keyword]} now"


def _tightest(schema: Json, inclusive: str, exclusive: str | None, direction: int) -> tuple[float, bool]:
    """Give a bound as a pair that grows as the range narrows: an exclusive bound is narrower than its equal."""
    bounds = [(schema[inclusive] * direction, False)] if inclusive in schema else []
    if exclusive in schema:
        bounds.append((schema[exclusive] * direction, True))
    return max(bounds, default=(-math.inf, False))


def _git(repository: Path, *arguments: str) -> str:
    # A hook's GIT_DIR would name another repository than the one we are asked about.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(repository), *arguments]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
