from __future__ import annotations

import types
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from msgspec import Meta

from muxflow.contracts import encode
from muxflow.contracts.examples import example
from muxflow.contracts.schemas import CONTRACTS, Contract, schema_of

Json = dict[str, Any]

SCHEMAS: dict[str, Json] = {contract.name: schema_of(contract) for contract in CONTRACTS}

each_contract = pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)


def properties(schema: Json) -> Iterator[tuple[str, Json]]:
    """Walk all properties of a document, those of its definitions included."""
    for part in (schema, *schema.get("$defs", {}).values()):
        for name, inner in part.get("properties", {}).items():
            yield f"{part['title']}.{name}", inner


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Make anything that a type allows, its ranges kept."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return within([rule for rule in arguments[1:] if isinstance(rule, Meta)], arguments[0])
    if origin in (Union, types.UnionType):
        return st.one_of([values(arm) for arm in arguments])
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    return plain(hint)


def plain(kind: Any) -> st.SearchStrategy[Any]:
    if issubclass(kind, msgspec.Struct):
        hints = get_type_hints(kind, include_extras=True)
        return st.builds(kind, **{field: values(hints[field]) for field in kind.__struct_fields__})
    if issubclass(kind, Enum):
        return st.sampled_from(list(kind))
    return {
        str: st.text(max_size=9),
        bool: st.booleans(),
        bytes: st.binary(max_size=9),
        float: st.floats(allow_nan=False, allow_infinity=False),
        types.NoneType: st.none(),
    }[kind]


def within(rules: list[Meta], hint: Any) -> st.SearchStrategy[Any]:
    """Make values of a type with ranges: its bounds themselves, and what lies between."""
    limits: dict[str, Any] = {}
    for rule in rules:
        names = ("ge", "gt", "le", "lt", "min_length", "pattern")
        limits |= {name: limit for name in names if (limit := getattr(rule, name)) is not None}
    least, most = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    if hint is int:
        return st.integers(min_value=least, max_value=most).filter(lambda number: number != limits.get("lt"))
    if hint is float:
        return st.floats(min_value=least, max_value=most, exclude_min="gt" in limits, allow_infinity=False)
    if "pattern" in limits:
        return st.from_regex(limits["pattern"])
    return values(hint).filter(lambda value: len(value) >= limits.get("min_length", 0))


def spoiled(document: Json, schema: Json, value: Any) -> Iterator[Any]:
    """Break a valid value in every way its schema forbids, one way at a time."""
    schema = next(arm for arm in schema.get("anyOf", [schema]) if arm.get("type") != "null")
    if "$ref" in schema:
        schema = document["$defs"][schema["$ref"].rpartition("/")[2]]
    yield from outside(schema)
    for name in schema.get("required", ()):
        yield {key: inner for key, inner in value.items() if key != name}
    for name, inner in schema.get("properties", {}).items():
        yield from ({**value, name: bad} for bad in spoiled(document, inner, value[name]))
    if "items" in schema:
        yield from ([bad] for bad in spoiled(document, schema["items"], value[0]))
    if "additionalProperties" in schema:
        (key, inner), *_ = value.items()
        yield from ({key: bad} for bad in spoiled(document, schema["additionalProperties"], inner))
        if "propertyNames" in schema:
            yield {"1 bad name": inner}


def outside(schema: Json) -> Iterator[Any]:
    """Give values just beyond each limit of one schema."""
    wrong = {"string": 7, "integer": "7", "number": "7", "boolean": 1, "array": {}, "object": []}
    yield wrong[schema.get("type", "string")]
    if schema.get("type") == "integer":
        yield 0.5
    steps = {"minimum": -1, "maximum": 1, "exclusiveMinimum": 0, "exclusiveMaximum": 0}
    yield from (schema[keyword] + step for keyword, step in steps.items() if keyword in schema)
    if "minLength" in schema:
        yield "x" * (schema["minLength"] - 1)
    if "maxLength" in schema:
        yield "x" * (schema["maxLength"] + 1)
    if "minItems" in schema:
        yield ["x"] * (schema["minItems"] - 1)
    if "pattern" in schema:
        yield from ("no match\n", "\n", schema.get("default", "x") + "\n")
    if "enum" in schema:
        yield "no such choice"


def test_names_of_contracts_are_unique() -> None:
    assert len(SCHEMAS) == len(CONTRACTS)


@each_contract
def test_a_schema_is_a_json_schema(contract: Contract) -> None:
    Draft202012Validator.check_schema(SCHEMAS[contract.name])


@each_contract
def test_a_schema_tells_its_identity_and_its_address(contract: Contract) -> None:
    schema = SCHEMAS[contract.name]
    assert schema["$id"] == f"urn:muxflow:{contract.name}:1"
    assert schema["title"] == contract.kind.__name__
    assert schema["description"]
    assert {key: schema[key] for key in schema if key.startswith("x-")} == contract.address


@each_contract
def test_every_property_is_described(contract: Contract) -> None:
    silent = [where for where, inner in properties(SCHEMAS[contract.name]) if not inner.get("description")]
    assert not silent, "give them docstrings, or an entry in muxflow.contracts.vocabulary"


@each_contract
def test_the_example_fills_every_field_and_fits_its_schema(contract: Contract) -> None:
    schema = SCHEMAS[contract.name]
    (shown,) = schema["examples"]
    Draft202012Validator(schema).validate(shown)
    assert shown.keys() == schema["properties"].keys()
    assert None not in shown.values()


@each_contract
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_whatever_we_send_fits_its_schema(contract: Contract, data: st.DataObject) -> None:
    event = data.draw(values(contract.kind))
    Draft202012Validator(SCHEMAS[contract.name]).validate(msgspec.json.decode(encode(event)))
    assert msgspec.json.decode(encode(event), type=contract.kind) == event


@each_contract
def test_whatever_the_schema_refuses_we_refuse(contract: Contract) -> None:
    schema = SCHEMAS[contract.name]
    validator = Draft202012Validator(schema)
    bad_values = list(spoiled(schema, schema, msgspec.json.decode(encode(example(contract.kind)))))
    assert len(bad_values) > 3
    for bad in bad_values:
        assert not validator.is_valid(bad), bad
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(msgspec.json.encode(bad), type=contract.kind)


def test_members_of_a_choice_are_explained() -> None:
    text = SCHEMAS["runs.evicted"]["$defs"]["StopCause"]["description"]
    assert "- `eviction`: The online side needed the GPU." in text.splitlines()


def test_a_property_tells_its_own_meaning_and_then_its_range() -> None:
    described = dict(properties(SCHEMAS["kv.jobs"]))
    assert described["JobRecord.submitted_ns"]["description"] == (
        "When the server stored the submission. Nanoseconds since 1970-01-01 UTC; 0 means not given."
    )
    assert described["JobRecord.tenant"]["description"] == "Name of the tenant that owns the job."
    assert described["JobSpec.gpu"]["description"] == "What a job needs of a GPU."
