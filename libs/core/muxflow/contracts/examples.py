"""One complete example of each struct: every field is filled, nothing is random."""

from __future__ import annotations

import types
from enum import Enum
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

S = TypeVar("S", bound=msgspec.Struct)

_STRINGS: Final[dict[str, str]] = {
    "attempt": "2",
    "Mount.source": "/data/imagenet",
    "Mount.target": "/data",
    "boot_id": "8f0c7f0e-5c1c-4f4e-9d53-0d8f3c1f7a11",
    "command": "train.py",
    "env": "EPOCHS",
    "gpu": "GPU-3f2b8c1e-7d44-4c0e-9a53-2f0d7c1e8b90",
    "gpu_kind": "A100",
    "image": "python:3.12",
    "id": "0197f3a2-6d5e-7c10-9b1a-4e2f6c8d0a31",
    "job": "resnet50-finetune",
    "kind": "A100",
    "kinds": "A100",
    "name": "resnet50-finetune",
    "node": "gpu-7.rack2.example",
    "runners": "process",
    "secrets": "TOKEN",
    "service": "scheduler",
    "signal": "SIGUSR2",
    "source": "executor@gpu-7.rack2.example",
    "subject": "muxflow.jobs.submit.default.resnet50-finetune",
    "submission_id": "0197f3a2-6d5e-7c10-9b1a-4e2f6c8d0a30",
    "tenant": "default",
    "uuid": "GPU-3f2b8c1e-7d44-4c0e-9a53-2f0d7c1e8b90",
    "workdir": "/scratch",
    "workload": "search-ranking",
}
_TIME_NS: Final = 1_790_000_000_123_456_789
_GIB: Final = 2**30


def example(kind: type[S]) -> S:
    """Make the example of a struct.

    Raises `msgspec.ValidationError` if it breaks the struct's own rules: a new pattern needs an entry in this module.
    """
    hints = get_type_hints(kind, include_extras=True)
    made = kind(**{field: _value(hints[field], f"{kind.__name__}.{field}") for field in kind.__struct_fields__})
    return msgspec.convert(msgspec.to_builtins(made), kind)


def _value(hint: Any, field: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _within(arguments[1:], _value(arguments[0], field))
    if origin in (Union, types.UnionType):
        return _value(next(arm for arm in arguments if arm is not types.NoneType), field)
    if origin is tuple:
        return (_value(arguments[0], field),)
    if origin is dict:
        return {_string(field): _value(arguments[1], "value")}
    return _plain(hint, field)


def _plain(kind: type, field: str) -> Any:
    if issubclass(kind, msgspec.Struct):
        return example(kind)
    if issubclass(kind, Enum):
        return next(iter(kind))
    if issubclass(kind, str):
        return _string(field)
    if kind is int:
        return _TIME_NS if field.endswith("_ns") else _GIB if field.endswith("_bytes") else 3
    return {bool: True, float: 12.5, bytes: b"epoch 3/3\n"}[kind]


def _string(field: str) -> str:
    name = field.rpartition(".")[2]
    return _STRINGS.get(field) or _STRINGS.get(name, name.replace("_", "-"))


def _within(rules: tuple[Any, ...], value: Any) -> Any:
    """Move a number into its inclusive bounds; the examples are within all exclusive ones."""
    for rule in rules:
        if isinstance(rule, Meta) and rule.ge is not None:
            value = max(value, rule.ge)
        if isinstance(rule, Meta) and rule.le is not None:
            value = min(value, rule.le)
    return value
