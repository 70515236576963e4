"""Any NATS client takes part: jobs from a bare socket, without headers, good ones and bad ones."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from machine import Machine
from plain_client import DEADLINE_S, PlainClient, RefusedError
from workloads import until

GIB = 2**30
SERVICES = ("server", "scheduler", "executor")


@pytest.fixture(autouse=True)
def _every_service_goes_on(machine: Machine) -> Iterator[None]:
    """Whatever is sent: the same processes serve afterwards, and say that they are ready."""
    yield
    assert {name: machine.pid(name) for name in SERVICES} == machine.ready["pids"]
    for name in SERVICES:
        assert Path(f"/proc/{machine.pid(name)}").exists(), name
    for name in SERVICES[1:]:  # on a busy host one may be about to renew its lease
        until(lambda name=name: _is_ready(machine.ready["ports"][name]), 15, f"{name} is ready")  # type: ignore[misc]


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return False


def submission(command: list[str], *, memory_bytes: int = GIB, **spec: object) -> bytes:
    return json.dumps({"spec": {"command": command, "gpu": {"memory_bytes": memory_bytes}, **spec}}).encode()


def send(machine: Machine, job: str, payload: bytes, *, tenant: str = "default", role: str = "user-default") -> None:
    with PlainClient(machine.state_dir, role) as client:
        client.publish(f"muxflow.jobs.submit.{tenant}.{job}", payload)


def end_of(machine: Machine, job: str, payload: bytes, *, times: int = 1) -> str:
    """Send a job, and wait for the event that ends it, on the same socket."""
    with PlainClient(machine.state_dir) as client:
        for verb in ("finished", "failed", "cancelled", "rejected"):
            client.subscribe(f"muxflow.jobs.{verb}.default.{job}")
        for _ in range(times):
            client.publish(f"muxflow.jobs.submit.default.{job}", payload)
        subject, event = client.next_event()
        assert (event["tenant"], event["job"]) == ("default", job)
        return subject.split(".")[2]


def refusal(machine: Machine, job: str, payload: bytes, *, tenant: str = "default", role: str) -> dict[str, Any]:
    with PlainClient(machine.state_dir, role) as client:
        client.subscribe(f"muxflow.jobs.rejected.{tenant}.{job}")
        client.publish(f"muxflow.jobs.submit.{tenant}.{job}", payload)
        return client.next_event()[1]


def test_a_job_without_headers_is_run_to_its_end(machine: Machine) -> None:
    assert end_of(machine, "x", submission(["echo", "from a socket"])) == "finished"
    assert machine.run("logs", "x").stdout == "from a socket\n"
    (shown,) = (each for each in machine.json("jobs") if each["job"] == "x")
    assert (shown["state"], shown["attempt"]) == ("finished", 1)


def test_what_is_not_json_is_in_dead_with_the_reason(machine: Machine) -> None:
    malformed = {
        "garbled": b"this is no JSON",
        "truncated": submission(["true"])[:-3],
        "binary": b"\xff\xfe\x00",
        "empty": b"",
    }
    for name, payload in malformed.items():
        send(machine, name, payload)
    subjects = {f"muxflow.jobs.submit.default.{name}" for name in malformed}
    deadline = time.monotonic() + DEADLINE_S
    letters: list[dict[str, Any]] = []
    while {each["letter"]["subject"] for each in letters} != subjects:
        assert time.monotonic() < deadline, letters
        letters = machine.json("dead", "list")
    assert len(letters) == len(malformed)
    for entry in letters:
        assert entry["letter"]["reason"].startswith("not JSON: ")
    shown = machine.run("dead", "show", str(letters[0]["number"])).stdout
    assert re.search(r"^subject +muxflow\.jobs\.submit\.default\.garbled$", shown, re.MULTILINE), shown
    assert re.search(r"^reason +not JSON: ", shown, re.MULTILINE), shown
    assert machine.run("status", "garbled").returncode == 1


@pytest.mark.parametrize(
    ("name", "payload", "field"),
    [
        ("negative", submission(["true"], memory_bytes=-1), "spec.gpu.memory_bytes"),
        ("nothing", submission([]), "spec.command"),
        ("blank", submission([""]), "spec.command[0]"),
        ("misspelt", submission(["true"], retires=3), "spec.retires"),
        ("specless", b"{}", "spec"),
        ("list", b"[]", None),
        ("elsewhere", submission(["true"], tenant="other"), "spec.tenant"),
    ],
)
def test_what_is_not_valid_is_rejected_by_an_event_that_names_the_field(
    machine: Machine, name: str, payload: bytes, field: str | None
) -> None:
    event = refusal(machine, name, payload, role="user-default")
    assert event["field"] == field
    assert event["reason"]


def test_an_unknown_tenant_is_rejected_too(machine: Machine) -> None:
    event = refusal(machine, "stray", submission(["true"]), tenant="nobody", role="operator")
    assert (event["tenant"], event["field"]) == ("nobody", "spec.tenant")
    assert "nobody" in event["reason"]


def test_a_user_cannot_even_say_another_tenants_name(machine: Machine) -> None:
    with PlainClient(machine.state_dir) as client, pytest.raises(RefusedError, match="Permissions Violation"):
        client.publish("muxflow.jobs.submit.nobody.x", submission(["true"]))


def test_a_submission_that_comes_twice_runs_once(machine: Machine, tmp_path: Path) -> None:
    witness = tmp_path / "runs"
    payload = submission(["sh", "-c", f"echo run >> {witness}"])
    assert end_of(machine, "twice", payload, times=2) == "finished"
    send(machine, "twice", payload)
    assert end_of(machine, "after", submission(["true"])) == "finished"  # what came before it has been handled
    assert witness.read_text() == "run\n"
    terminal = [event for event in events(machine, "jobs") if event["names"].get("job") == "twice"]
    assert [event["kind"] for event in terminal].count("jobs.finished") == 1


def events(machine: Machine, subject: str) -> list[dict[str, Any]]:
    done = machine.run("events", subject, "--since", "1h", "--json")
    return [json.loads(line) for line in done.stdout.splitlines()]
