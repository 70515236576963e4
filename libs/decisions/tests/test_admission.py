"""What is refused, is refused with the field and how to put it right."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxflow.contracts import GpuRequest, JobSpec, JobSubmit, decode, encode
from muxflow_decisions.admission import AdmissionLimits, Refusal, check, invalid

LIMITS = AdmissionLimits()
TENANTS = frozenset({"default", "team-a", "_all"})
GOOD: dict[str, Any] = {"command": ["python", "train.py"], "gpu": {"memory_bytes": 8 * 2**30}}


def submit(raw: object, *, tenant: str = "default", job: str = "train") -> JobSpec | Refusal:
    """Take a submission the way the scheduler does."""
    data = msgspec.json.encode(raw)
    try:
        event = decode(data, JobSubmit)
    except msgspec.ValidationError as error:
        return invalid(error)
    return check(msgspec.json.decode(data), event, tenant=tenant, job=job, tenants=TENANTS, limits=LIMITS)


def refusal(spec: dict[str, Any], **subject: str) -> tuple[str | None, str]:
    found = submit({"spec": {**GOOD, **spec}}, **subject)
    assert isinstance(found, Refusal), found
    return found.field, found.reason


def test_name_and_tenant_come_from_the_subject() -> None:
    spec = submit({"spec": GOOD}, tenant="team-a", job="x.1")
    assert isinstance(spec, JobSpec)
    assert (spec.tenant, spec.name) == ("team-a", "x.1")
    assert submit({"spec": {**GOOD, "name": "x.1", "tenant": "team-a"}}, tenant="team-a", job="x.1") == spec


@pytest.mark.parametrize(
    ("spec", "field", "reason"),
    [
        ({"name": "other"}, "spec.name", "is 'other', and the subject says 'train'"),
        ({"tenant": "team-a"}, "spec.tenant", "is 'team-a', and the subject says 'default'"),
        ({"comand": ["x"]}, "spec.comand", "there is no such field; did you mean 'command'?"),
        (
            {"gpu": {"memory_bytes": 1, "memory": "8GiB"}},
            "spec.gpu.memory",
            "there is no such field; did you mean 'memory_bytes'?",
        ),
        (
            {"image": "i", "mounts": [{"source": "/a", "target": "/b"}, {"source": "/a", "target": "/c", "ro": True}]},
            "spec.mounts[1].ro",
            "there is no such field; known are source, target, read_only",
        ),
        ({"checkpoint": {"grace": 3}}, "spec.checkpoint.grace", "there is no such field; did you mean 'grace_s'?"),
        (
            {"gpu": {"memory_bytes": 1, "count": 2}},
            "spec.gpu.count",
            "gangs are not supported yet; ask for 1 GPU",
        ),
        (
            {"gpu": {"memory_bytes": 2**41}},
            "spec.gpu.memory_bytes",
            "is 2,199,023,255,552 bytes, and at most 1,099,511,627,776 are allowed",
        ),
        (
            {"mounts": [{"source": "/a", "target": "/b"}]},
            "spec.mounts",
            "mounts need an image; a process sees the node's files as they are",
        ),
        (
            {"image": "i", "mounts": [{"source": "/a", "target": "b"}]},
            "spec.mounts[0].target",
            "must begin with '/'",
        ),
        ({"image": "--privileged"}, "spec.image", "is an option, not an image"),
        ({"env": {"A": "1"}, "secrets": {"A": "key"}}, "spec.secrets.A", "is in env too; give it once"),
        ({"env": {"LD_PRELOAD": "x"}}, "spec.env.LD_PRELOAD", "is set by MuxFlow itself"),
        ({"env": {"MUXFLOW_JOB": "x"}}, "spec.env.MUXFLOW_JOB", "is set by MuxFlow itself"),
        (
            {"secrets": {"CUDA_MPS_PIPE_DIRECTORY": "x"}},
            "spec.secrets.CUDA_MPS_PIPE_DIRECTORY",
            "is set by MuxFlow itself",
        ),
        ({"env": {"CUDA_VISIBLE_DEVICES": "0"}}, "spec.env.CUDA_VISIBLE_DEVICES", "is set by MuxFlow itself"),
        ({"env": {"BIG": "x" * 131_072}}, "spec.env.BIG", "is longer than 131,071 bytes"),
        ({"command": ["run", "x" * 131_072]}, "spec.command[1]", "is longer than 131,071 bytes"),
        ({"command": [" "]}, "spec.command[0]", "is empty; it names the program to run"),
        ({"command": ["", "x"]}, "spec.command[0]", "is empty; it names the program to run"),
        (
            {"command": ["run", "a\0b"]},
            "spec.command[1]",
            "holds a NUL character, which no program can be given",
        ),
        ({"env": {"A": "\0"}}, "spec.env.A", "holds a NUL character, which no program can be given"),
        ({"workdir": "/a\0"}, "spec.workdir", "holds a NUL character, which no program can be given"),
        (
            {"command": ["run", "x" * 130_000, "y" * 130_000, "z" * 130_000]},
            "spec",
            "is 390,261 bytes, and at most 262,144 are allowed",
        ),
    ],
)
def test_a_job_that_we_cannot_run_is_refused(spec: dict[str, Any], field: str, reason: str) -> None:
    assert refusal(spec) == (field, reason)


def test_an_unknown_field_beside_the_specification_is_named_too() -> None:
    found = submit({"spec": GOOD, "priority": 3})
    assert isinstance(found, Refusal)
    assert found.field == "priority"


def test_an_unknown_tenant_is_refused() -> None:
    field, reason = refusal({}, tenant="team-b")
    assert (field, reason) == ("spec.tenant", "there is no tenant 'team-b'; operators declare tenants")


def test_the_name_that_stands_for_every_tenant_is_reserved_even_if_declared() -> None:
    field, reason = refusal({}, tenant="_all")
    assert field == "spec.tenant"
    assert "reserved" in reason


@pytest.mark.parametrize("job", ["a b", "-a", "a\n", "ü", "x" * 129, "a/b"])
def test_a_subject_that_holds_no_job_name_is_refused(job: str) -> None:
    assert refusal({}, job=job)[0] == "spec.name"


@pytest.mark.parametrize(
    ("raw", "field", "reason"),
    [
        ({}, "spec", "is missing"),
        ({"spec": {"command": ["x"]}}, "spec.gpu", "is missing"),
        ({"spec": {**GOOD, "command": []}}, "spec.command", "must be a list of text with the program first"),
        ({"spec": {**GOOD, "command": ["a", 3]}}, "spec.command[1]", "must be text, not a whole number"),
        ({"spec": {**GOOD, "gpu": {"memory_bytes": -1}}}, "spec.gpu.memory_bytes", "must be a whole number >= 1"),
        (
            {"spec": {**GOOD, "env": {"1A": "x"}}},
            "spec.env",
            "names of environment variables are letters, digits and '_'",
        ),
        ({"spec": {**GOOD, "env": {"A": 1}}}, "spec.env", "must be text, not a whole number"),
        ({"spec": {**GOOD, "image": 3}}, "spec.image", "must be text or null, not a whole number"),
        (
            {"spec": {**GOOD, "gpu": {"memory_bytes": 1, "kinds": [""]}}},
            "spec.gpu.kinds[0]",
            "must be text that is not empty",
        ),
        ([], None, "must be an object, not a list"),
        (
            {"spec": {**GOOD, "checkpoint": {"signal": "SIGKILL"}}},
            "spec.checkpoint.signal",
            "must be SIGUSR1, SIGUSR2, SIGHUP or SIGRTMIN to SIGRTMIN+15",
        ),
    ],
)
def test_what_the_types_refuse_is_told_in_plain_words(raw: object, field: str | None, reason: str) -> None:
    assert submit(raw) == Refusal(field=field, reason=reason)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.sampled_from(sorted(GOOD)), inner),
    max_leaves=12,
)


@given(json_values, st.dictionaries(st.sampled_from(JobSpec.__struct_fields__), json_values))
def test_any_json_gets_a_specification_or_a_refusal(anything: object, fields: dict[str, object]) -> None:
    for raw in (anything, {"spec": anything}, {"spec": {**GOOD, **fields}}):
        found = submit(raw)
        assert isinstance(found, (JobSpec, Refusal))
        if isinstance(found, Refusal):
            assert found.reason
            assert "`" not in found.reason


def test_what_was_admitted_is_admitted_again_unchanged() -> None:
    spec = JobSpec(name="train", tenant="default", command=("x",), gpu=GpuRequest(memory_bytes=1), env={"A": ""})
    assert submit(msgspec.json.decode(encode(JobSubmit(spec=spec)))) == spec
