"""AsyncAPI 3.0 of the whole bus, seen from the middle: who sends what where, and who receives it.

A client's own view is the part of the operations whose `x-muxflow` names its role.
"""

from __future__ import annotations

from typing import Any, Final

from muxflow.contracts.catalogue import (
    BUCKETS,
    DURABLES,
    OBJECT_STORES,
    SUBJECTS,
    AckPolicy,
    Bucket,
    Durable,
    Role,
    Stream,
    Subject,
    stream_of,
)
from muxflow.contracts.schemas import schema_file

SCHEMA_FORMAT: Final = "application/schema+json;version=draft-2020-12"

Json = dict[str, Any]

_ENCODING: Final = (
    "Encoded: `[A-Za-z0-9_-]` stays, every other byte of its UTF-8 form becomes `=` and two upper-case hex digits."
)
_PARAMETERS: Final = {
    "gpu": "UUID of the GPU.",
    "gpu_kind": "Model family of the GPU.",
    "job": "Name of the job within its tenant.",
    "key": "Key of the profile.",
    "model": "Name of the model.",
    "node": "Name of the node.",
    "offline_key": "Profile key of the offline job.",
    "service": "Name of the service that gave the message up.",
    "tenant": "Name of the tenant.",
    "workload": "Name of the online workload.",
}


def asyncapi() -> Json:
    """Describe every subject, its messages, where they are kept and who uses them."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "MuxFlow's bus",
            "version": "1",
            "description": "Every event between processes, JSON on NATS. Readers ignore fields that they do not know.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"nats": _server()},
        "channels": _channels(),
        "operations": _operations(),
        "components": {"messages": _messages(), "parameters": _parameters()},
        "x-buckets": [_bucket(bucket) for bucket in BUCKETS],
        "x-object-stores": list(OBJECT_STORES),
    }


def _server() -> Json:
    return {
        "host": "{host}:{port}",
        "protocol": "nats",
        "description": "Any server of the cluster. Credentials are NKeys; each allows the rows of one role.",
        "variables": {
            "host": {"default": "127.0.0.1", "description": "Name or address of the server."},
            "port": {"default": "4222", "description": "Its client port."},
        },
    }


def _channels() -> Json:
    channels: Json = {}
    for subject in SUBJECTS:
        channels[subject.name] = _channel(subject)
        if subject.reply is not None:
            reply = f"{subject.name}.reply"
            channels[reply] = {
                "address": None,
                "description": "The inbox that the question named as its reply subject.",
                "messages": {subject.reply.__name__: {"$ref": f"#/components/messages/{reply}"}},
            }
    return channels


def _channel(subject: Subject) -> Json:
    channel: Json = {
        "address": subject.template,
        "description": _summary(subject.event),
        "messages": {subject.event.__name__: {"$ref": f"#/components/messages/{subject.name}"}},
        "parameters": {name: {"$ref": f"#/components/parameters/{name}"} for name in subject.placeholders},
        "x-muxflow": {"publishers": _roles(subject.publishers), "readers": _roles(subject.readers)},
    }
    stream = stream_of(subject)
    if stream is not None:
        channel["x-jetstream"] = _jetstream(subject, stream)
    return channel


def _jetstream(subject: Subject, stream: Stream) -> Json:
    durables = [durable for durable in DURABLES if _reads(durable, subject)]
    return {
        "stream": stream.name,
        "description": stream.doc,
        "last_per_subject": stream.last_per_subject,
        "max_age_s": stream.max_age_s,
        "max_bytes": stream.max_bytes,
        "discard": stream.discard,
        "storage": stream.storage,
        "ack_policy": (AckPolicy.AFTER_EFFECT if durables else AckPolicy.NONE).value,
        "durables": [_durable(durable) for durable in durables],
    }


def _reads(durable: Durable, subject: Subject) -> bool:
    return durable.stream == subject.stream and any(covers(pattern, subject.pattern()) for pattern in durable.filters)


def covers(pattern: str, subject: str) -> bool:
    """Whether a NATS pattern matches everything that a subject, or another pattern without ``>``, matches."""
    wanted, given = pattern.split("."), subject.split(".")
    if wanted[-1] == ">" and len(given) >= len(wanted):
        wanted.pop()
        del given[len(wanted) :]
    return len(wanted) == len(given) and all(want in ("*", token) for want, token in zip(wanted, given, strict=True))


def _durable(durable: Durable) -> Json:
    return {
        "name": durable.name,
        "role": durable.role.value,
        "filters": list(durable.filters),
        "ack_wait_s": durable.ack_wait_s,
        "max_deliver": durable.max_deliver,
        "max_ack_pending": durable.max_ack_pending,
    }


def _operations() -> Json:
    operations: Json = {}
    for subject in SUBJECTS:
        operations[f"{subject.name}.send"] = _operation("send", subject, subject.publishers)
        operations[f"{subject.name}.receive"] = _operation("receive", subject, subject.readers)
    return operations


def _operation(action: str, subject: Subject, roles: tuple[Role, ...]) -> Json:
    operation: Json = {
        "action": action,
        "channel": {"$ref": f"#/channels/{subject.name}"},
        "messages": [{"$ref": f"#/channels/{subject.name}/messages/{subject.event.__name__}"}],
        "x-muxflow": {"roles": _roles(roles)},
    }
    if subject.reply is not None:
        reply = f"#/channels/{subject.name}.reply"
        operation["reply"] = {
            "channel": {"$ref": reply},
            "messages": [{"$ref": f"{reply}/messages/{subject.reply.__name__}"}],
        }
    return operation


def _messages() -> Json:
    messages: Json = {}
    for subject in SUBJECTS:
        messages[subject.name] = _message(subject.name, subject.event)
        if subject.reply is not None:
            messages[f"{subject.name}.reply"] = _message(f"{subject.name}.reply", subject.reply)
    return messages


def _message(name: str, kind: type) -> Json:
    return {
        "name": kind.__name__,
        "summary": _summary(kind),
        "contentType": "application/json",
        "payload": {"schemaFormat": SCHEMA_FORMAT, "schema": {"$ref": f"./{schema_file(name)}"}},
    }


def _parameters() -> Json:
    used = {name for subject in SUBJECTS for name in subject.placeholders}
    return {name: {"description": f"{_PARAMETERS[name]} {_ENCODING}"} for name in sorted(used)}


def _bucket(bucket: Bucket) -> Json:
    return {
        "name": bucket.name,
        "description": bucket.doc,
        "key": bucket.key,
        "ttl_s": bucket.ttl_s,
        "value": {"$ref": f"./{schema_file(f'kv.{bucket.name}')}"},
        "x-muxflow": {"writer": bucket.writer.value, "readers": _roles(bucket.readers)},
    }


def _summary(kind: type) -> str:
    return (kind.__doc__ or "").splitlines()[0].replace("``", "`")


def _roles(roles: tuple[Role, ...]) -> list[str]:
    return [role.value for role in roles]
