from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from muxflow.contracts import BUCKETS, DURABLES, STREAMS, SUBJECTS, Subject, export
from muxflow.contracts.asyncapi import asyncapi

Json = dict[str, Any]

DOCUMENT: Json = yaml.safe_load(export.generate()[export.ASYNCAPI_FILE])

each_subject = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            assert value.keys() == {"$ref"}
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def resolved(reference: str) -> Any:
    assert reference.startswith("#/")
    found: Any = DOCUMENT
    for step in reference.removeprefix("#/").split("/"):
        found = found[step]
    return found


def test_the_file_says_what_was_made() -> None:
    assert asyncapi() == DOCUMENT


def test_the_document_has_the_parts_that_asyncapi_3_requires() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert DOCUMENT["info"].keys() >= {"title", "version"}
    assert all(server.keys() >= {"host", "protocol"} for server in DOCUMENT["servers"].values())
    for operation in DOCUMENT["operations"].values():
        assert operation["action"] in ("send", "receive")
    known = {"asyncapi", "info", "servers", "defaultContentType", "channels", "operations", "components"}
    assert {key for key in DOCUMENT if not key.startswith("x-")} == known


def test_names_in_components_are_legal() -> None:
    for components in DOCUMENT["components"].values():
        assert all(re.fullmatch(r"[a-zA-Z0-9._-]+", name) for name in components)


def test_every_reference_leads_somewhere(tmp_path: Path) -> None:
    export.write(tmp_path)
    found = list(references(DOCUMENT))
    assert len(found) > len(SUBJECTS)
    for reference in found:
        if reference.startswith("./"):
            assert (tmp_path / reference).is_file(), reference
        else:
            assert resolved(reference), reference


def test_no_component_is_left_over() -> None:
    used = set(references(DOCUMENT))
    for kind, components in DOCUMENT["components"].items():
        assert {f"#/components/{kind}/{name}" for name in components} <= used


@each_subject
def test_a_channel_has_its_address_with_its_parameters_and_its_message(subject: Subject) -> None:
    channel = DOCUMENT["channels"][subject.name]
    assert channel["address"] == subject.template
    assert list(channel["parameters"]) == re.findall(r"\{(\w+)\}", channel["address"])
    (message,) = channel["messages"].values()
    payload = resolved(message["$ref"])["payload"]
    assert payload["schema"] == {"$ref": f"./{subject.name}.schema.json"}


@each_subject
def test_publishers_send_and_readers_receive(subject: Subject) -> None:
    for action, roles in (("send", subject.publishers), ("receive", subject.readers)):
        operation = DOCUMENT["operations"][f"{subject.name}.{action}"]
        assert operation["action"] == action
        assert resolved(operation["channel"]["$ref"])["address"] == subject.template
        assert operation["x-muxflow"]["roles"] == [role.value for role in roles]


@each_subject
def test_messages_of_an_operation_are_messages_of_its_channel(subject: Subject) -> None:
    for action in ("send", "receive"):
        operation = DOCUMENT["operations"][f"{subject.name}.{action}"]
        for part in (operation, operation.get("reply", operation)):
            assert all(message["$ref"].startswith(part["channel"]["$ref"] + "/") for message in part["messages"])


@each_subject
def test_a_question_has_its_answer_and_nothing_else_has(subject: Subject) -> None:
    operation = DOCUMENT["operations"][f"{subject.name}.send"]
    if subject.reply is None:
        assert "reply" not in operation
        return
    (message,) = operation["reply"]["messages"]
    assert message["$ref"].endswith(subject.reply.__name__)
    assert resolved(operation["reply"]["channel"]["$ref"])["address"] is None


@each_subject
def test_a_channel_tells_how_its_stream_keeps_it(subject: Subject) -> None:
    channel = DOCUMENT["channels"][subject.name]
    if subject.stream is None:
        assert "x-jetstream" not in channel
        return
    (stream,) = (stream for stream in STREAMS if stream.name == subject.stream)
    kept = channel["x-jetstream"]
    assert kept["stream"] == stream.name
    for setting in ("last_per_subject", "max_age_s", "max_bytes", "discard", "storage"):
        assert kept[setting] == getattr(stream, setting)


def test_durables_stand_at_what_they_read_and_are_acked_after_the_effect() -> None:
    reads: dict[tuple[str, str], set[str]] = {}
    for name, channel in DOCUMENT["channels"].items():
        kept = channel.get("x-jetstream", {"durables": []})
        assert kept.get("ack_policy") != ("none" if kept["durables"] else "after-effect")
        for durable in kept["durables"]:
            reads.setdefault((kept["stream"], durable["name"]), set()).add(name)
    assert reads.keys() == {(durable.stream, durable.name) for durable in DURABLES}
    assert reads["JOBS", "scheduler"] == {"jobs.submit", "jobs.cancel"}
    assert reads["RUNS", "scheduler"] == {"runs.started", "runs.checkpointed", "runs.evicted", "runs.exited"}


def test_buckets_are_told_with_their_values() -> None:
    assert [bucket["name"] for bucket in DOCUMENT["x-buckets"]] == [bucket.name for bucket in BUCKETS]
    assert DOCUMENT["x-buckets"][0]["value"] == {"$ref": "./kv.jobs.schema.json"}
