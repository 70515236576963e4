from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from muxflow.contracts import export
from muxflow.contracts.compatibility import incompatibilities, release_tags, released, schemas_in
from muxflow.contracts.schemas import CONTRACTS, schema_of

Json = dict[str, Any]

REPOSITORY = Path(__file__).parents[4]


def event(properties: Json, *, required: tuple[str, ...] = ()) -> Json:
    return {"type": "object", "properties": properties, "required": list(required)}


def of_field(old: Json, new: Json) -> list[str]:
    return incompatibilities({"e": event({"f": old})}, {"e": event({"f": new})})


OPTIONAL_NUMBER = {"anyOf": [{"type": "number", "minimum": 0}, {"type": "null"}]}


@pytest.mark.parametrize(
    ("old", "new", "broken"),
    [
        ({"type": "string"}, {"type": "integer"}, "e.f: no longer accepts string"),
        ({"type": "number"}, {"type": "integer"}, "e.f: no longer accepts number"),
        (OPTIONAL_NUMBER, {"type": "number", "minimum": 0}, "e.f: no longer accepts null"),
        (OPTIONAL_NUMBER, {"type": "null"}, "e.f: no longer accepts number"),
        ({"type": "integer"}, {"type": "integer", "minimum": 0}, "e.f: minimum is 0 now"),
        ({"type": "integer", "minimum": 0}, {"type": "integer", "minimum": 1}, "e.f: minimum is 1 now"),
        ({"type": "integer", "maximum": 9}, {"type": "integer", "maximum": 8}, "e.f: maximum is 8 now"),
        ({"type": "number", "minimum": 0}, {"type": "number", "exclusiveMinimum": 0}, "e.f: exclusiveMinimum is 0 now"),
        ({"type": "number", "maximum": 9}, {"type": "number", "exclusiveMaximum": 9}, "e.f: exclusiveMaximum is 9 now"),
        ({"type": "string"}, {"type": "string", "minLength": 1}, "e.f: minLength is 1 now"),
        ({"type": "string", "maxLength": 9}, {"type": "string", "maxLength": 8}, "e.f: maxLength is 8 now"),
        ({"type": "array"}, {"type": "array", "minItems": 1}, "e.f: minItems is 1 now"),
        ({"type": "array"}, {"type": "array", "maxItems": 1}, "e.f: maxItems is 1 now"),
        ({"type": "string"}, {"type": "string", "pattern": "^a$"}, "e.f: pattern was None and is '^a$'"),
        (
            {"type": "string", "pattern": "^a$"},
            {"type": "string", "pattern": "^b$"},
            "e.f: pattern was '^a$' and is '^b$'",
        ),
        (
            {"type": "string"},
            {"type": "string", "contentEncoding": "base64"},
            "e.f: contentEncoding was None and is 'base64'",
        ),
        (
            {"type": "string", "contentEncoding": "base64"},
            {"type": "string"},
            "e.f: contentEncoding was 'base64' and is None",
        ),
        ({"enum": ["a", "b"]}, {"enum": ["a"]}, "e.f: no longer accepts 'b'"),
        ({"type": "string"}, {"enum": ["a"]}, "e.f: accepts only ['a'] now"),
        ({"type": "integer", "default": 1}, {"type": "integer", "default": 2}, "e.f: default was 1 and is 2"),
        (
            {"type": "array", "items": {"type": "integer"}},
            {"type": "array", "items": {"type": "integer", "maximum": 1}},
            "e.f[]: maximum is 1 now",
        ),
        ({"type": "array"}, {"type": "array", "items": {"type": "string"}}, "e.f[]: no longer accepts anything"),
        (
            {"type": "object", "additionalProperties": {"type": "string"}},
            {"type": "object", "additionalProperties": {"type": "string", "minLength": 1}},
            "e.f{}: minLength is 1 now",
        ),
        (
            {"type": "object", "propertyNames": {"maxLength": 9}},
            {"type": "object", "propertyNames": {"maxLength": 8}},
            "e.f{name}: maxLength is 8 now",
        ),
        ({"type": "object"}, {"type": "object", "propertyNames": {"maxLength": 8}}, "e.f{name}: maxLength is 8 now"),
    ],
)
def test_a_narrower_field_is_incompatible(old: Json, new: Json, broken: str) -> None:
    assert of_field(old, new) == [broken]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"type": "integer"}, {"type": "number"}),
        ({"type": "number", "minimum": 0}, OPTIONAL_NUMBER),
        ({"type": "integer", "minimum": 1}, {"type": "integer", "minimum": 0}),
        ({"type": "integer", "minimum": 1, "maximum": 9}, {"type": "integer"}),
        ({"type": "number", "exclusiveMinimum": 0}, {"type": "number", "minimum": 0}),
        ({"type": "string", "pattern": "^a$", "minLength": 1}, {"type": "string"}),
        ({"enum": ["a"]}, {"enum": ["a", "b"]}),
        ({"enum": ["a"]}, {"type": "string"}),
        ({"type": "string"}, {"type": "string", "default": "x"}),
        ({"type": "string", "description": "Old."}, {"type": "string", "description": "New.", "examples": ["x"]}),
        ({"type": "array", "items": {"type": "string"}}, {"type": "array"}),
    ],
)
def test_a_wider_field_is_compatible(old: Json, new: Json) -> None:
    assert of_field(old, new) == []


def test_a_removed_property_is_incompatible() -> None:
    old, new = event({"f": {"type": "string"}, "g": {"type": "string"}}), event({"f": {"type": "string"}})
    assert incompatibilities({"e": old}, {"e": new}) == ["e.g: removed"]


def test_a_new_property_is_compatible_unless_it_is_required() -> None:
    old, properties = event({}), {"f": {"type": "string"}}
    assert incompatibilities({"e": old}, {"e": event(properties)}) == []
    assert incompatibilities({"e": old}, {"e": event(properties, required=("f",))}) == ["e.f: is required now"]


def test_a_property_that_becomes_required_is_incompatible() -> None:
    properties = {"f": {"type": "string"}}
    old, new = event(properties), event(properties, required=("f",))
    assert incompatibilities({"e": old}, {"e": new}) == ["e.f: is required now"]
    assert incompatibilities({"e": new}, {"e": old}) == []


def test_a_removed_event_is_incompatible_and_a_new_one_is_not() -> None:
    assert incompatibilities({"e": event({})}, {}) == ["e: removed"]
    assert incompatibilities({}, {"e": event({})}) == []


@pytest.mark.parametrize("keyword", ["x-subject", "x-reply-to", "x-bucket", "x-key"])
def test_a_moved_event_is_incompatible(keyword: str) -> None:
    old, new = {**event({}), keyword: "a.{b}"}, {**event({}), keyword: "a.{c}"}
    assert incompatibilities({"e": old}, {"e": new}) == [f"e: moved: {keyword} was 'a.{{b}}' and is 'a.{{c}}'"]


def test_references_are_followed_and_a_renamed_type_is_compatible() -> None:
    old = {**event({"f": {"$ref": "#/$defs/A"}}), "$defs": {"A": event({"g": {"type": "string"}})}}
    renamed = {**event({"f": {"$ref": "#/$defs/B"}}), "$defs": {"B": event({"g": {"type": "string"}})}}
    changed = {**event({"f": {"$ref": "#/$defs/A"}}), "$defs": {"A": event({"g": {"type": "null"}})}}
    assert incompatibilities({"e": old}, {"e": renamed}) == []
    assert incompatibilities({"e": old}, {"e": changed}) == ["e.f.g: no longer accepts string"]


def test_of_several_types_the_nearest_is_compared() -> None:
    one, other = event({"a": {"type": "string"}}), event({"b": {"type": "string"}})
    assert of_field({"anyOf": [one, {"type": "null"}]}, {"anyOf": [other, one, {"type": "null"}]}) == []


def test_all_that_is_wrong_is_told() -> None:
    old = event({"f": {"type": "string"}, "g": {"type": "integer"}, "h": {"type": "null"}})
    new = event({"f": {"type": "null"}, "g": {"type": "integer", "minimum": 0}, "i": {}}, required=("i",))
    assert incompatibilities({"e": old, "gone": event({})}, {"e": new}) == [
        "e.i: is required now",
        "e.f: no longer accepts string",
        "e.g: minimum is 0 now",
        "e.h: removed",
        "gone: removed",
    ]


def test_todays_schemas_are_compatible_with_themselves() -> None:
    schemas = {contract.name: schema_of(contract) for contract in CONTRACTS}
    assert incompatibilities(schemas, schemas) == []


def test_the_comparison_knows_every_keyword_that_the_schemas_use() -> None:
    compared = {"type", "anyOf", "$ref", "enum", "pattern", "contentEncoding", "default", "required", "properties"}
    compared |= {"items", "additionalProperties", "propertyNames", "x-subject", "x-reply-to", "x-bucket", "x-key"}
    compared |= {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
    compared |= {"minLength", "maxLength", "minItems", "maxItems"}
    without_effect = {"$schema", "$id", "$defs", "title", "description", "examples"}

    def keywords(schema: Json) -> set[str]:
        maps = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values(), *schema.get("anyOf", ())]
        inner = [schema[keyword] for keyword in ("items", "additionalProperties", "propertyNames") if keyword in schema]
        return set(schema).union(*map(keywords, [*maps, *inner]))

    assert set().union(*(keywords(schema_of(contract)) for contract in CONTRACTS)) <= compared | without_effect


# Releases: in a repository made for the test, and then in our own.


def git(repository: Path, *arguments: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    nobody = ("-c", "user.name=Test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(repository), *nobody, *arguments]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=30)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Make a repository with today's schemas, released as v0.1.0."""
    git(tmp_path, "init", "--quiet")
    export.write(tmp_path / "schemas")
    git(tmp_path, "add", "schemas")
    git(tmp_path, "commit", "--quiet", "--no-verify", "--message", "release")
    git(tmp_path, "tag", "v0.1.0")
    return tmp_path


def test_the_schemas_of_a_tag_are_read_whatever_the_working_tree_holds(repository: Path) -> None:
    shutil.rmtree(repository / "schemas")
    release = released(repository, "v0.1.0")
    assert release.tag == "v0.1.0"
    assert release.schemas == {contract.name: schema_of(contract) for contract in CONTRACTS}


def test_a_change_since_the_newest_tag_is_found(repository: Path) -> None:
    path = repository / "schemas" / "jobs.submit.schema.json"
    schema = json.loads(path.read_text())
    schema["$defs"]["JobSpec"]["required"].append("name")
    del schema["$defs"]["JobSpec"]["properties"]["retries"]
    path.write_text(json.dumps(schema))
    (newest,) = release_tags(repository)
    assert incompatibilities(released(repository, newest).schemas, schemas_in(repository / "schemas")) == [
        "jobs.submit.spec.name: is required now",
        "jobs.submit.spec.retries: removed",
    ]


def test_the_newest_version_comes_first_and_a_release_after_its_candidates(repository: Path) -> None:
    for tag in ("v0.10.0", "v0.9.0", "v0.10.0rc1", "v0.10.0.dev1", "other"):
        git(repository, "tag", tag)
    assert release_tags(repository) == ("v0.10.0", "v0.10.0rc1", "v0.10.0.dev1", "v0.9.0", "v0.1.0")


def test_an_unknown_tag_is_an_error(repository: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        released(repository, "v9.9.9")


def test_an_archive_without_git_has_no_releases_even_inside_another_repository(repository: Path) -> None:
    archive = repository / "unpacked"
    archive.mkdir()
    assert release_tags(archive) == ()


def test_without_the_git_program_there_are_no_releases(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert release_tags(repository) == ()


def test_a_hooks_git_dir_does_not_lead_to_another_repository(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("other")
    git(other, "init", "--quiet")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert release_tags(repository) == ("v0.1.0",)


def test_todays_contracts_are_compatible_with_the_newest_release() -> None:
    tags = release_tags(REPOSITORY)
    if not tags:
        pytest.skip("no release yet")
    today = {contract.name: schema_of(contract) for contract in CONTRACTS}
    broken = incompatibilities(released(REPOSITORY, tags[0]).schemas, today)
    assert not broken, "\n".join([f"since {tags[0]}:", *broken])
