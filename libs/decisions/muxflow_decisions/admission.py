"""Whether a submission is a job that we can run. What is refused, is refused with the field and how to put it right.

The contracts' types have checked types and ranges before, and a failure there becomes a refusal through `invalid`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator
from functools import cache
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, inspect
from msgspec.structs import replace

from muxflow.contracts import ALL_TENANTS, JobSpec, JobSubmit, encode
from muxflow.contracts.names import JOB_NAME_PATTERN

NAME_RULE: Final = "must be 1 to 128 letters, digits, '.', '_' or '-', beginning and ending with a letter or digit"

OUR_VARIABLES: Final = frozenset(
    {
        "CUDA_DEVICE_ORDER",
        "CUDA_VISIBLE_DEVICES",
        "LD_PRELOAD",
        "NVIDIA_VISIBLE_DEVICES",
    }
)
"""Environment variables that MuxFlow sets for a job, besides those that begin with one of `OUR_PREFIXES`."""
OUR_PREFIXES: Final = ("MUXFLOW_", "CUDA_MPS_")


class AdmissionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Settings: how large a job may be."""

    spec_bytes: Annotated[int, Meta(ge=1024)] = 256 * 1024
    """A whole specification, encoded."""
    text_bytes: Annotated[int, Meta(ge=1024)] = 128 * 1024 - 1
    """One argument, or one environment variable with its name: Linux starts no program with a longer one."""
    memory_bytes: Annotated[int, Meta(ge=1)] = 2**40
    """Device memory of one GPU."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a submission was refused."""

    field: str | None
    """Path such as ``spec.gpu.memory_bytes``; null when no single field is at fault."""
    reason: str


def check(
    raw: object,
    event: JobSubmit,
    *,
    tenant: str,
    job: str,
    tenants: Collection[str],
    limits: AdmissionLimits,
) -> JobSpec | Refusal:
    """Give the specification with name and tenant filled in, or the first thing that is wrong with it.

    `raw` is the decoded JSON that `event` was made of; `tenant` and `job` come from the subject.
    """
    spec = replace(event.spec, name=event.spec.name or job, tenant=event.spec.tenant or tenant)
    for refusal in (
        *_unknown_fields(raw, JobSubmit, ""),
        *_names(spec, tenant, job, tenants),
        *_command(spec),
        *_environment(spec, limits),
        *_device(spec, limits),
        *_container(spec),
        *_texts(spec, limits),
    ):
        return refusal
    return spec


def invalid(error: msgspec.ValidationError) -> Refusal:
    """Put into words what the contracts' types found wrong."""
    found = re.fullmatch(r"(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$\.?(?P<path>[^`]*)`)?", str(error), re.DOTALL)
    what, path = (found["what"], found["path"] or "") if found else (str(error), "")
    if found and found["key"]:
        return Refusal(field=path, reason="names of environment variables are letters, digits and '_'")
    missing = re.fullmatch(r"Object missing required field `(\w+)`", what)
    if missing:
        return Refusal(field=f"{path}.{missing[1]}".lstrip("."), reason="is missing")
    path = path.replace("[...]", "")
    return Refusal(field=path or None, reason=_RULES.get(path) or _plainly(what))


_RULES: Final = {
    "spec.name": NAME_RULE,
    "spec.tenant": NAME_RULE,
    "spec.command": "must be a list of text with the program first",
    "spec.checkpoint.signal": "must be SIGUSR1, SIGUSR2, SIGHUP or SIGRTMIN to SIGRTMIN+15",
}
"""What msgspec says about these is a regular expression, or does not tell what the field is for."""

_WORDS: Final = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "null": "null",
    "object": "an object",
    "str": "text",
}


def _plainly(what: str) -> str:
    def in_words(match: re.Match[str]) -> str:
        return " or ".join(_WORDS.get(word, word) for word in match[1].split(" | "))

    plain = re.sub(r"`([^`]+)`", in_words, what)
    plain = plain.replace("text of length >= 1", "text that is not empty")
    return re.sub(r"^Expected ", "must be ", plain).replace(", got ", ", not ")


def _unknown_fields(raw: object, kind: type[msgspec.Struct], path: str) -> Iterator[Refusal]:
    """Find keys that no struct has: readers ignore them, and a job would run without what its owner asked for."""
    if not isinstance(raw, dict):
        return
    known = _fields(kind)
    for key, value in raw.items():
        place = f"{path}{key}"
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            yield Refusal(field=place, reason=f"there is no such field; {hint}")
            continue
        struct = known[key]
        if struct is None:
            continue
        if isinstance(value, list):
            for number, item in enumerate(value):
                yield from _unknown_fields(item, struct, f"{place}[{number}].")
        else:
            yield from _unknown_fields(value, struct, f"{place}.")


@cache
def _fields(kind: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct] | None]:
    """Names of a struct's fields on the wire, each with the struct inside it if there is one."""
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType)  # noqa: S101 - tells mypy what type_info gives for a struct
    return {field.encode_name: _struct_in(field.type) for field in described.fields}


def _struct_in(kind: inspect.Type) -> type[msgspec.Struct] | None:
    match kind:
        case inspect.StructType():
            return kind.cls
        case inspect.VarTupleType():
            return _struct_in(kind.item_type)
        case inspect.UnionType():
            return next((struct for inner in kind.types if (struct := _struct_in(inner))), None)
    return None


def _names(spec: JobSpec, tenant: str, job: str, tenants: Collection[str]) -> Iterator[Refusal]:
    if spec.name != job:
        yield Refusal(field="spec.name", reason=f"is {spec.name!r}, and the subject says {job!r}")
    if spec.tenant != tenant:
        yield Refusal(field="spec.tenant", reason=f"is {spec.tenant!r}, and the subject says {tenant!r}")
    if not re.search(JOB_NAME_PATTERN, job):
        yield Refusal(field="spec.name", reason=NAME_RULE)
    if tenant == ALL_TENANTS:
        yield Refusal(field="spec.tenant", reason=f"{ALL_TENANTS!r} is reserved: it stands for every tenant")
    if tenant not in tenants:
        yield Refusal(field="spec.tenant", reason=f"there is no tenant {tenant!r}; operators declare tenants")


def _command(spec: JobSpec) -> Iterator[Refusal]:
    if not spec.command[0].strip():
        yield Refusal(field="spec.command[0]", reason="is empty; it names the program to run")


def _environment(spec: JobSpec, limits: AdmissionLimits) -> Iterator[Refusal]:
    for section, table in (("env", spec.env), ("secrets", spec.secrets)):
        for name, value in table.items():
            place = f"spec.{section}.{name}"
            if name in OUR_VARIABLES or name.startswith(OUR_PREFIXES):
                yield Refusal(field=place, reason="is set by MuxFlow itself")
            if len(name.encode()) + len(value.encode()) + 1 > limits.text_bytes:
                yield Refusal(field=place, reason=f"is longer than {limits.text_bytes:,} bytes")
    for name in sorted(spec.env.keys() & spec.secrets.keys()):
        yield Refusal(field=f"spec.secrets.{name}", reason="is in env too; give it once")


def _device(spec: JobSpec, limits: AdmissionLimits) -> Iterator[Refusal]:
    if spec.gpu.count > 1:
        yield Refusal(field="spec.gpu.count", reason="gangs are not supported yet; ask for 1 GPU")
    if spec.gpu.memory_bytes > limits.memory_bytes:
        reason = f"is {spec.gpu.memory_bytes:,} bytes, and at most {limits.memory_bytes:,} are allowed"
        yield Refusal(field="spec.gpu.memory_bytes", reason=reason)


def _container(spec: JobSpec) -> Iterator[Refusal]:
    if spec.image is not None and spec.image.startswith("-"):
        yield Refusal(field="spec.image", reason="is an option, not an image")
    if spec.mounts and spec.image is None:
        yield Refusal(field="spec.mounts", reason="mounts need an image; a process sees the node's files as they are")
    for number, mount in enumerate(spec.mounts):
        for side, path in (("source", mount.source), ("target", mount.target)):
            if not path.startswith("/"):
                yield Refusal(field=f"spec.mounts[{number}].{side}", reason="must begin with '/'")


def _texts(spec: JobSpec, limits: AdmissionLimits) -> Iterator[Refusal]:
    for number, argument in enumerate(spec.command):
        if len(argument.encode()) > limits.text_bytes:
            yield Refusal(field=f"spec.command[{number}]", reason=f"is longer than {limits.text_bytes:,} bytes")
    encoded = encode(spec)
    if rb"\u0000" in encoded:
        for place, text in _every_text(msgspec.to_builtins(spec), "spec"):
            if "\0" in text:
                yield Refusal(field=place, reason="holds a NUL character, which no program can be given")
    size_bytes = len(encoded)
    if size_bytes > limits.spec_bytes:
        yield Refusal(field="spec", reason=f"is {size_bytes:,} bytes, and at most {limits.spec_bytes:,} are allowed")


def _every_text(value: Any, path: str) -> Iterator[tuple[str, str]]:
    match value:
        case str():
            yield path, value
        case dict():
            for key, inner in value.items():
                yield from _every_text(inner, f"{path}.{key}")
        case list() | tuple():
            for number, inner in enumerate(value):
                yield from _every_text(inner, f"{path}[{number}]")
