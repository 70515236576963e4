"""JSON Schema (2020-12) of everything that is published: events, replies, values of buckets."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final, get_args, get_origin, get_type_hints

import msgspec

from muxflow.contracts.catalogue import BUCKETS, SUBJECTS
from muxflow.contracts.docstrings import member_docstrings
from muxflow.contracts.examples import example
from muxflow.contracts.vocabulary import MEANINGS

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

Json = dict[str, Any]


class Contract(msgspec.Struct, frozen=True, kw_only=True):
    """One published type and where it travels."""

    name: str
    """Short name, such as ``jobs.submit``, ``query.scheduler.jobs.reply`` or ``kv.jobs``."""
    kind: type[msgspec.Struct]
    address: dict[str, str]
    """Keywords that say where: ``x-subject``, ``x-reply-to``, or ``x-bucket`` and ``x-key``."""


def _contracts() -> tuple[Contract, ...]:
    events = [
        Contract(name=subject.name, kind=subject.event, address={"x-subject": subject.template}) for subject in SUBJECTS
    ]
    replies = [
        Contract(name=f"{subject.name}.reply", kind=subject.reply, address={"x-reply-to": subject.template})
        for subject in SUBJECTS
        if subject.reply is not None
    ]
    records = [
        Contract(name=f"kv.{bucket.name}", kind=bucket.value, address={"x-bucket": bucket.name, "x-key": bucket.key})
        for bucket in BUCKETS
    ]
    return (*events, *replies, *records)


CONTRACTS: Final = _contracts()


def schema_file(name: str) -> str:
    """Name the file that holds a contract's schema."""
    return f"{name}.schema.json"


def schema_of(contract: Contract) -> Json:
    """Make a contract's schema: self-contained, each property described, with an example."""
    definitions: dict[str, Json] = msgspec.json.schema(contract.kind)["$defs"]
    kinds = reachable(contract.kind)
    described = {name: _described(definitions[name], kinds[name], kinds) for name in sorted(definitions)}
    root = described.pop(contract.kind.__name__)
    schema = {
        "$schema": DIALECT,
        "$id": f"urn:muxflow:{contract.name}:1",
        **contract.address,
        **root,
        "examples": [example(contract.kind)],
        **({"$defs": described} if described else {}),
    }
    plain: Json = msgspec.json.decode(msgspec.json.encode(schema))
    return plain


def reachable(kind: type) -> dict[str, type]:
    """Find every struct and enum in a struct, itself included, by name."""
    found: dict[str, type] = {}

    def visit(hint: Any) -> None:
        if get_origin(hint) is not None:
            for argument in get_args(hint):
                visit(argument)
        elif isinstance(hint, type) and issubclass(hint, (msgspec.Struct, Enum)) and hint.__name__ not in found:
            found[hint.__name__] = hint
            if issubclass(hint, msgspec.Struct):
                for inner in get_type_hints(hint).values():
                    visit(inner)

    visit(kind)
    return found


def _described(definition: Json, kind: type, kinds: dict[str, type]) -> Json:
    docstrings = member_docstrings(kind)
    text = definition.get("description", "").replace("``", "`")
    if issubclass(kind, Enum):
        members = [f"- `{member.value}`: {docstrings[member.name]}" for member in kind if member.name in docstrings]
        return {**definition, "description": "\n".join([text, *members])}
    properties = {
        name: {"description": _meaning(name, schema, docstrings, kinds), **_without_description(schema)}
        for name, schema in definition["properties"].items()
    }
    return {**definition, "description": text, "properties": properties}


def _meaning(name: str, schema: Json, docstrings: dict[str, str], kinds: dict[str, type]) -> str:
    """Join what the field, or else its type, or else its name says, with what its range says."""
    own = docstrings.get(name) or _first_line_of_type(schema, kinds) or MEANINGS.get(name, "")
    texts = (own, *(part["description"] for part in _arms(schema) if "description" in part))
    return " ".join(text for text in texts if text)


def _first_line_of_type(schema: Json, kinds: dict[str, type]) -> str:
    references = [part["$ref"].rpartition("/")[2] for part in _arms(schema) if "$ref" in part]
    docstring = kinds[references[0]].__doc__ if references else None
    return docstring.splitlines()[0].replace("``", "`") if docstring else ""


def _arms(schema: Json) -> list[Json]:
    arms: list[Json] = schema.get("anyOf", [schema])
    return arms


def _without_description(schema: Json) -> Json:
    plain = {keyword: value for keyword, value in schema.items() if keyword != "description"}
    if "anyOf" in plain:
        plain["anyOf"] = [_without_description(arm) for arm in plain["anyOf"]]
    return plain
