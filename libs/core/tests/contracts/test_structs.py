from __future__ import annotations

import inspect
import re
from enum import Enum, StrEnum
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

import msgspec
import pytest
from msgspec import Meta

from muxflow import contracts
from muxflow.contracts.docstrings import member_docstrings
from muxflow.contracts.event import Event, TimeNs
from muxflow.contracts.schemas import CONTRACTS, reachable
from muxflow.contracts.vocabulary import MEANINGS

KINDS: Final = {name: kind for contract in CONTRACTS for name, kind in reachable(contract.kind).items()}
STRUCTS: Final = {name: kind for name, kind in KINDS.items() if issubclass(kind, msgspec.Struct)}
ENUMS: Final = {name: kind for name, kind in KINDS.items() if issubclass(kind, Enum)}

# What a publisher must say. Nothing is added here after the first release: old publishers would not say it.
REQUIRED: Final = {
    "Attempt": "tenant job attempt",
    "CorunProfile": "offline_key workload gpu_kind",
    "DeadLetter": "service subject reason data",
    "DeviceAlert": "node gpu message",
    "DeviceFault": "node gpu kind",
    "DeviceRequest": "node gpu enabled",
    "DeviceState": "node gpu state since_ns",
    "DeviceSummary": "node gpu alive watched",
    "DevicesReply": "devices",
    "EvictRequest": "node gpu",
    "EvictionAlert": "node gpu tenant job attempt cause",
    "Gpu": "uuid kind memory_bytes",
    "GpuError": "code name",
    "GpuDecision": "node gpu term generation",
    "GpuRequest": "memory_bytes",
    "GpuSample": "gpu",
    "GpuSummary": "gpu",
    "JobAccepted": "tenant job submission_id",
    "JobCancelled": "tenant job attempt",
    "JobFailed": "tenant job attempt reason",
    "JobFinished": "tenant job attempt node gpu",
    "JobQuery": "job",
    "JobRecord": "tenant job spec submission_id submitted_ns",
    "JobRejected": "tenant job submission_id reason",
    "JobReply": "record",
    "JobSpec": "command gpu",
    "JobSubmit": "spec",
    "JobSummary": "tenant job state reason attempt priority memory_bytes placement submitted_ns changed_ns",
    "JobsReply": "jobs total",
    "Launch": "command",
    "LeaderLease": "holder time_ns",
    "LogsQuery": "job",
    "LogsReply": "attempt data offset end running",
    "Mount": "source target",
    "NodeLease": "node boot_id session time_ns",
    "NodeState": "node boot_id gpus",
    "NodeSummary": "node alive lease_age_s boot_id labels runners gpus",
    "NodeTelemetry": "node gpus",
    "NodesReply": "nodes",
    "OfflineProfile": "key gpu_kind",
    "OfflineUsage": "tenant job attempt launches busy_us throttled_us frozen_us refused_bytes memory_bytes",
    "OnlineAlert": "node workload message",
    "OnlineInterval": "start_minute",
    "OnlineProfile": "workload gpu_kind",
    "OnlineState": "node gpu workload",
    "Pair": "offline_key memory_bytes gpu_kind",
    "Placement": "node gpu",
    "PlacementOption": "gpu_kind gpu_memory_bytes gpus free",
    "PredictQuery": "key memory_bytes gpu_kind",
    "PredictReply": "gpu_kind profiled predictions",
    "Prediction": "workload sm_share_pct speed",
    "ProbeRequest": "key tenant job online_key",
    "ProfileRequest": "key tenant job",
    "QueueReply": "jobs total",
    "QueuedJob": "tenant job position priority memory_bytes since_ns waiting",
    "RunCheckpointed": "node gpu tenant job attempt",
    "RunEvicted": "node gpu tenant job attempt cause",
    "RunExited": "node gpu tenant job attempt exit ended_ns",
    "RunStarted": "node gpu tenant job attempt pid boot_id",
    "SloReport": "workload window_s requests",
    "Slot": "tenant job attempt memory_quota_bytes launch",
    "Solve": "time_ns trigger jobs gpus job_classes gpu_classes placed cost bound solve_ms",
    "Speed": "normalized_throughput low high fits_probability basis",
    "SpeedModel": "model version object_name trained_rows",
    "SpeedsQuery": "pairs",
    "SpeedsReply": "speeds",
    "Transition": "time_ns state stimulus",
}

UNITS: Final = {"ns", "us", "ms", "s", "bytes", "pct", "permille", "mhz", "w", "c"}
DIMENSIONLESS: Final = {
    ("CorunProfile", "normalized_throughput"),
    ("GpuSample", "offline_inflation"),
    ("OfflineProfile", "kernel_time_us_mean"),
    ("OfflineProfile", "launches_per_s"),
    ("OfflineProfile", "launches_relative_error"),
    ("Prediction", "measured"),
    ("Solve", "throughput"),
    ("Speed", "fits_probability"),
    ("Speed", "high"),
    ("Speed", "low"),
    ("Speed", "normalized_throughput"),
    ("SpeedModel", "evaluation"),
}
DURATIONS: Final = {
    "age",
    "delay",
    "duration",
    "every",
    "grace",
    "latency",
    "period",
    "timeout",
    "ttl",
    "wait",
    "window",
}

each_struct = pytest.mark.parametrize("kind", STRUCTS.values(), ids=STRUCTS)
each_enum = pytest.mark.parametrize("kind", ENUMS.values(), ids=ENUMS)


def numbers(kind: type) -> list[tuple[str, type, list[Meta]]]:
    """Give each field that holds numbers: its name, int or float, and its ranges."""
    found: list[tuple[str, type, list[Meta]]] = []

    def visit(field: str, hint: Any, ranges: list[Meta]) -> None:
        if get_origin(hint) is Annotated:
            plain, *metadata = get_args(hint)
            visit(field, plain, ranges + [rule for rule in metadata if isinstance(rule, Meta)])
        elif hint in (int, float):
            found.append((field, hint, ranges))
        else:
            for argument in get_args(hint):
                visit(field, argument, ranges)

    for field, hint in get_type_hints(kind, include_extras=True).items():
        visit(field, hint, [])
    return found


def unit(field: str) -> str | None:
    """Name the unit in a field's name: its last word that is one."""
    return next((word for word in reversed(field.split("_")) if word in UNITS), None)


@each_struct
def test_a_struct_is_frozen(kind: type[msgspec.Struct]) -> None:
    assert kind.__struct_config__.frozen


@each_struct
def test_a_struct_takes_keywords_only(kind: type[msgspec.Struct]) -> None:
    parameters = inspect.signature(kind).parameters.values()
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.KEYWORD_ONLY}


@each_struct
def test_a_struct_tolerates_fields_of_later_versions(kind: type[msgspec.Struct]) -> None:
    assert not kind.__struct_config__.forbid_unknown_fields


@each_struct
def test_a_struct_requires_only_what_is_listed(kind: type[msgspec.Struct]) -> None:
    required = [field.name for field in msgspec.structs.fields(kind) if field.required]
    assert required == REQUIRED.get(kind.__name__, "").split()


def test_nothing_is_listed_as_required_for_a_struct_that_is_gone() -> None:
    assert REQUIRED.keys() <= STRUCTS.keys()


@each_struct
def test_a_struct_says_what_it_is(kind: type[msgspec.Struct]) -> None:
    assert inspect.cleandoc(kind.__dict__.get("__doc__") or "").endswith((".", ")"))


@each_struct
def test_times_are_nanoseconds_and_say_so(kind: type[msgspec.Struct]) -> None:
    time = get_args(TimeNs)[1]
    for field, plain, ranges in numbers(kind):
        assert (unit(field) == "ns") == (plain is int and time in ranges), field


@each_struct
def test_a_number_with_a_fraction_names_its_unit(kind: type[msgspec.Struct]) -> None:
    for field, plain, _ in numbers(kind):
        assert plain is int or unit(field) or (kind.__name__, field) in DIMENSIONLESS, field


@each_struct
def test_a_duration_names_its_unit(kind: type[msgspec.Struct]) -> None:
    for field, _, _ in numbers(kind):
        assert DURATIONS.isdisjoint(field.split("_")) or unit(field) in ("ns", "us", "ms", "s"), field


@each_struct
def test_a_number_has_a_range(kind: type[msgspec.Struct]) -> None:
    for field, _, ranges in numbers(kind):
        bounded = any(rule.ge is not None or rule.gt is not None for rule in ranges)
        assert bounded or (kind.__name__, field) == ("SpeedModel", "evaluation"), field


@each_struct
def test_an_integer_fits_into_64_bits(kind: type[msgspec.Struct]) -> None:
    for field, plain, ranges in numbers(kind):
        tops = [top for rule in ranges for top in (rule.lt, rule.le) if top is not None]
        assert plain is float or min(tops, default=2**64) < 2**63, field


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("pct", 0, 100), ("permille", 0, 1000), ("bytes", 0, 2**53)],
)
def test_a_unit_bounds_its_numbers(name: str, low: int, high: int) -> None:
    for kind in STRUCTS.values():
        for field, _, ranges in numbers(kind):
            if unit(field) == name:
                assert max(rule.ge for rule in ranges if rule.ge is not None) >= low, field
                assert min(rule.le for rule in ranges if rule.le is not None) <= high, field


@each_enum
def test_a_choice_is_one_word_in_lower_case(kind: type[Enum]) -> None:
    assert issubclass(kind, StrEnum)
    assert all(re.fullmatch(r"[a-z-]+", member.value) for member in kind)


def test_one_name_belongs_to_one_type() -> None:
    for contract in CONTRACTS:
        for name, kind in reachable(contract.kind).items():
            assert KINDS[name] is kind


def test_the_package_exports_every_published_type() -> None:
    assert KINDS.keys() <= set(contracts.__all__)


def test_every_entry_of_the_vocabulary_is_used() -> None:
    undocumented = {
        field for kind in STRUCTS.values() for field in kind.__struct_fields__ if field not in member_docstrings(kind)
    }
    assert MEANINGS.keys() <= undocumented


def test_docstrings_of_fields_are_read_from_the_source_and_inherited() -> None:
    docstrings = member_docstrings(contracts.RunStarted)
    assert docstrings["boot_id"] == "The node's `/proc/sys/kernel/random/boot_id`."
    assert docstrings["id"] == member_docstrings(Event)["id"]
    assert "pid" not in docstrings
