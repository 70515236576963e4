"""What each role may publish and subscribe, derived from the catalogue. Everything else is forbidden.

Streams with durables: whoever may create consumers on a stream can change any durable there by its name. So on those
streams only operators may; services are given their own durable's next message and its acks, nothing more.

Streams without durables: readers make consumers of their own. The subject of the request names the filter, and the
server refuses a payload with another one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from muxflow.contracts import BUCKETS, DURABLES, STREAMS, SUBJECTS, Bucket, Durable, Role, Subject, encode_token
from muxflow.contracts.catalogue import MAX_DELIVERIES_ADVISORY, OBJECT_STORES

BOUND_BY: Final[dict[Role, str]] = {Role.USER: "tenant", Role.NODE: "node", Role.ONLINE: "workload"}
"""Roles whose credentials are bound, and the placeholder they are bound to."""

_WITH_DURABLES: Final = frozenset(durable.stream for durable in DURABLES)
_FENCERS: Final[dict[str, tuple[Role, ...]]] = {"node_leases": (Role.SCHEDULER,)}
"""Who may delete entries of somebody else's bucket. The server cannot tell a deletion from a write."""


class Permissions(msgspec.Struct, frozen=True, kw_only=True):
    """Allow lists, sorted."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    responses: bool = False
    """Whether it may answer whoever asked it."""


def inbox_prefix(role: Role, bound_to: str | None = None) -> str:
    """Where a role's answers arrive; nobody else can read there."""
    return f"_INBOX_{role.value}" + ("" if bound_to is None else f"_{encode_token(bound_to)}")


def permissions(role: Role, bound_to: str | None = None) -> Permissions:
    """Give a role its rows of the table. ValueError if it must be bound and is not, or the other way round."""
    if (role in BOUND_BY) != (bound_to is not None):
        raise ValueError(f"role {role.value} is bound to {BOUND_BY.get(role, 'nothing')}")
    names = {BOUND_BY[role]: bound_to} if bound_to is not None else {}
    read = [subject for subject in SUBJECTS if role in subject.readers]
    answers = any(subject.reply is not None for subject in read)
    publish = {subject.pattern(**names) for subject in SUBJECTS if role in subject.publishers}
    publish |= {_newest(subject, names) for subject in SUBJECTS if role in subject.publishers and subject.stream}
    publish |= _extra(role)
    publish |= _union(_reading(subject, role, names) for subject in read if subject.reply is None)
    publish |= _union(_consuming(durable) for durable in DURABLES if durable.role is role)
    publish |= _union(_bucket(bucket, role, names) for bucket in BUCKETS)
    publish |= _union(_objects(name) for name, owner in OBJECT_STORES.items() if role is owner)
    subscribe = {f"{inbox_prefix(role, bound_to)}.>", *(subject.pattern(**names) for subject in read)}
    if answers:
        subscribe.add("$SRV.>")
    return Permissions(publish=tuple(sorted(publish)), subscribe=tuple(sorted(subscribe)), responses=answers)


def _union(sets: Iterable[set[str]]) -> set[str]:
    return set().union(*sets)


def _reading(subject: Subject, role: Role, names: dict[str, str]) -> set[str]:
    """Reading what a stream has kept."""
    if subject.stream is None:
        return set()
    pattern = subject.pattern(**names)
    allowed = {_newest(subject, names)}
    if subject.stream not in _WITH_DURABLES or role is Role.OPERATOR:
        allowed |= _consumers(subject.stream, pattern)
    return allowed


def _newest(subject: Subject, names: dict[str, str]) -> str:
    """Getting the newest message of a subject: readers, and publishers who look whether it is their own."""
    return f"$JS.API.DIRECT.GET.{subject.stream}.{subject.pattern(**names)}"


def _consumers(stream: str, pattern: str) -> set[str]:
    """Ephemeral consumers with this very filter, and their flow control."""
    return {f"$JS.API.CONSUMER.CREATE.{stream}.*.{pattern}", f"$JS.FC.{stream}.>"}


def _consuming(durable: Durable) -> set[str]:
    """The next message of one durable, and its acks, in both forms that servers use."""
    at = f"{durable.stream}.{durable.name}"
    return {f"$JS.API.CONSUMER.MSG.NEXT.{at}", f"$JS.ACK.{at}.>", f"$JS.ACK.*.*.{at}.>"}


def _bucket(bucket: Bucket, role: Role, names: dict[str, str]) -> set[str]:
    key = f"$KV.{bucket.name}." + re.sub(
        r"\{(\w+)\}", lambda match: encode_token(names[match[1]]) if match[1] in names else "*", bucket.key
    )
    allowed: set[str] = set()
    if role is bucket.writer or role in _FENCERS.get(bucket.name, ()):
        allowed.add(key)
    if role is bucket.writer or role in bucket.readers:
        stream = f"KV_{bucket.name}"
        allowed |= {f"$JS.API.DIRECT.GET.{stream}.{key}", *_consumers(stream, key)}
    return allowed


def _objects(store: str) -> set[str]:
    """Writing, reading and dropping objects: their chunks, and the messages that name them."""
    stream, chunks, names = f"OBJ_{store}", f"$O.{store}.C.*", f"$O.{store}.M.*"
    return {
        chunks,
        names,
        f"$JS.API.DIRECT.GET.{stream}.{names}",
        *_consumers(stream, chunks),
        *_consumers(stream, names),
        f"$JS.API.STREAM.PURGE.{stream}",
    }


def _extra(role: Role) -> set[str]:
    """What the table of subjects does not tell."""
    match role:
        case Role.PROVISIONER:
            return {"$JS.API.>"}
        case Role.SCHEDULER:  # finds out which outcomes have been published, deletes what ended long ago
            return {"$JS.API.STREAM.INFO.JOBS", "$JS.API.STREAM.PURGE.JOBS", "$JS.API.CONSUMER.INFO.JOBS.scheduler"}
        case Role.OPERATOR:  # the originals of dead letters by their sequence, advisories, the state of everything
            return {
                *_consumers("DEAD", MAX_DELIVERIES_ADVISORY),
                *(f"$JS.API.STREAM.MSG.GET.{stream.name}" for stream in STREAMS),
                *(f"$JS.API.DIRECT.GET.{stream.name}" for stream in STREAMS),
                "$JS.API.CONSUMER.INFO.>",
                "$JS.API.INFO",
                "$JS.API.STREAM.INFO.*",
                "$JS.API.STREAM.LIST",
                "$JS.API.STREAM.NAMES",
                "$SRV.>",
            }
        case _:
            return set()
