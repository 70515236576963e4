"""The command line against a machine that `muxflow up` runs: real processes, as people use them."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nkeys
import pytest

from machine import LEASE_S, MUXFLOW, Machine
from muxflow import jobfile
from muxflow.bus.credentials import generate_seed
from muxflow.client import Client, NoAnswer, NotAllowed, NotFound, Rejected
from muxflow.contracts import GpuRequest, JobSpec, JobState

GIB = 2**30
ROOT = Path(__file__).parents[2]
DEADLINE_S = 20.0


def job(name: str, command: str, *, memory: str = "1GiB", **fields: object) -> str:
    """Make a job file; JSON is YAML."""
    return json.dumps(
        {"name": name, "command": ["sh", "-c", command], "gpu": {"memory": memory}, "retries": 0, **fields}
    )


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.05)
    return found


def connect(machine: Machine, **arguments: Any) -> Client:
    return Client.connect(state_dir=machine.state_dir, **arguments)


def given(machine: Machine, name: str, command: str, *, ended: bool = False) -> None:
    """Have a job, from a client: quicker than another process."""

    async def submit() -> None:
        async with connect(machine) as client:
            handle = await client.submit(*jobfile.parse(job(name, command)))
            await asyncio.wait_for(handle.outcome() if ended else handle.accepted(), DEADLINE_S)

    asyncio.run(submit())


def wait_for_state(machine: Machine, name: str, state: JobState) -> None:
    async def wait() -> None:
        async with connect(machine) as client, asyncio.timeout(DEADLINE_S):
            while await ask(client) is not state:
                await asyncio.sleep(0.02)

    async def ask(client: Client) -> JobState | None:
        try:
            return (await client.job(name)).record.state
        except (NotFound, NoAnswer):
            return None

    asyncio.run(wait())


# Jobs


def test_a_job_file_is_run_to_its_end(machine: Machine) -> None:
    done = machine.run("submit", str(ROOT / "examples/hello.yaml"), "--wait")
    assert done.stdout.splitlines() == ["default/hello: accepted", "default/hello: finished"]
    assert done.returncode == 0
    assert machine.run("logs", "hello").stdout == "hello from hello, attempt 1\n"


def test_a_job_that_fails_makes_waiting_for_it_fail(machine: Machine) -> None:
    done = machine.run("submit", "-", "--wait", "--json", stdin=job("fails", "exit 7"))
    (result,) = json.loads(done.stdout)
    assert (result["state"], result["exit_code"], done.returncode) == ("failed", 7, 1)


def test_submitting_the_same_job_again_tells_how_it_ended(machine: Machine) -> None:
    text = job("twice", "echo once")
    first = machine.json("submit", "-", "--wait", stdin=text)
    again = machine.json("submit", "-", "--wait", stdin=text)
    assert [result["state"] for result in (*first, *again)] == ["finished", "finished"]
    assert [result.get("existed", False) for result in (*first, *again)] == [False, True]
    assert machine.run("logs", "twice").stdout == "once\n"
    told = machine.run("submit", "-", stdin=text)
    assert re.fullmatch(r"default/twice: already there: finished .+ ago; nothing was started\n", told.stdout)
    assert (told.returncode, "--name NAME" in told.stderr) == (0, True)


def test_a_job_that_has_failed_fails_again_only_for_those_who_wait_for_it(machine: Machine) -> None:
    text = job("failed-before", "exit 4")
    machine.run("submit", "-", "--wait", stdin=text)
    assert machine.run("submit", "-", stdin=text).returncode == 0
    assert machine.run("submit", "-", "--wait", stdin=text).returncode == 1


def test_a_job_is_run_again_under_another_name(machine: Machine) -> None:
    text = job("first-name", "echo ran")
    machine.json("submit", "-", "--wait", stdin=text)
    (again,) = machine.json("submit", "-", "--wait", "--name", "second-name", stdin=text)
    assert (again["job"], again["state"], again.get("existed", False)) == ("second-name", "finished", False)
    for wrong, files in (("not a name", ["-"]), ("good", ["-", str(ROOT / "examples/hello.yaml")])):
        refused = machine.run("submit", *files, "--name", wrong, stdin=text)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert f"--name {wrong}" in refused.stderr


def test_jobs_of_one_file_are_submitted_in_its_order(machine: Machine) -> None:
    names = [f"ordered-{number}" for number in (3, 1, 4, 2, 5)]
    machine.json("submit", "-", stdin="\n---\n".join(job(name, "true") for name in names))
    done = machine.run("events", "jobs.submit", "--json")
    submitted = [json.loads(line)["names"]["job"] for line in done.stdout.splitlines()]
    assert [name for name in submitted if name.startswith("ordered-")] == names


def test_who_waits_for_a_job_that_waits_is_told_why_and_may_go_away(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(job("too-big", "true", memory="100GiB"))
    waiting = machine.follow("submit", str(tmp_path / "job.yaml"), "--wait")
    try:
        assert waiting.stderr is not None
        reason = waiting.stderr.readline()
        assert reason.startswith("default/too-big waits: ")
        assert "100" in reason
        waiting.send_signal(signal.SIGINT)
        told = waiting.stderr.read()
        assert "stays in the queue" in told
        assert "muxflow cancel default/too-big" in told
        assert waiting.wait(DEADLINE_S) == 130
    finally:
        waiting.kill()
        waiting.communicate()


def test_another_job_under_the_same_name_is_rejected(machine: Machine) -> None:
    given(machine, "taken", "true")
    done = machine.run("submit", "-", stdin=job("taken", "false"))
    assert done.returncode == 1
    assert done.stdout.startswith("default/taken: rejected: ")


def test_a_job_that_no_machine_can_run_is_told_why(machine: Machine) -> None:
    done = machine.run("submit", "-", stdin=job("gang", "true", gpu={"memory": "1GiB", "count": 2}))
    assert done.returncode == 1
    assert "gpu.count" in done.stdout


def test_a_mistake_in_a_job_file_submits_nothing(machine: Machine, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(job("never", "true"))
    bad.write_text("name: x\ncommand: [x]\ngpu: {memry: 1GiB}\n")
    done = machine.run("submit", str(good), str(bad))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"muxflow: {bad}:3: gpu.memry: unknown key; did you mean 'memory'?\n"
    assert machine.run("status", "never").returncode == 1


def test_status_says_why_a_job_does_not_run_and_how_it_came_there(machine: Machine) -> None:
    machine.json("submit", "-", stdin=job("huge", "true", memory="100GiB"))
    text = machine.run("status", "huge").stdout
    assert re.search(r"^state +pending$", text, re.MULTILINE)
    waits = re.search(r"^waits +(.+)$", text, re.MULTILINE)
    assert waits, text
    assert "100" in waits[1], "the reason has numbers"
    assert "submit" in text
    assert machine.json("status", "huge")["waiting"]


def test_who_asks_for_a_job_that_is_not_there_is_told_where_rejections_are(machine: Machine) -> None:
    done = machine.run("status", "nowhere")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "`muxflow events jobs.rejected`" in done.stderr


def test_jobs_are_listed_newest_first_and_by_state(machine: Machine) -> None:
    given(machine, "older", "true", ended=True)
    given(machine, "newer", "true", ended=True)
    names = [each["job"] for each in machine.json("jobs", "--state", "finished")]
    assert names.index("newer") < names.index("older")
    assert {each["state"] for each in machine.json("jobs", "--state", "finished")} == {"finished"}
    assert len(machine.json("jobs", "--limit", "1")) == 1
    table = machine.run("jobs").stdout.splitlines()
    assert table[0].split() == ["JOB", "STATE", "TRY", "AGE", "REASON"]
    assert any(line.startswith("newer ") for line in table)


def test_logs_follow_a_job_to_its_end(machine: Machine) -> None:
    given(machine, "talks", "for i in 1 2 3; do echo line $i; sleep 0.3; done")
    wait_for_state(machine, "talks", JobState.RUNNING)
    done = machine.run("logs", "talks", "--follow").stdout
    assert done == "line 1\nline 2\nline 3\n"
    pieces = [json.loads(line) for line in machine.run("logs", "talks", "--json").stdout.splitlines()]
    assert [piece["attempt"] for piece in pieces] == [1] * len(pieces)
    assert pieces[-1]["end"] == len(done)


def test_logs_say_why_a_job_has_printed_nothing(machine: Machine) -> None:
    machine.json("submit", "-", stdin=job("waits-for-room", "true", memory="100GiB"))
    done = machine.run("logs", "waits-for-room")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("default/waits-for-room has not been started yet, so it has no output: ")
    assert "100" in done.stderr
    no_program = {"name": "no-program", "command": ["/no/such/program"], "gpu": {"memory": "1GiB"}, "retries": 0}
    machine.run("submit", "-", "--wait", stdin=json.dumps(no_program))
    for arguments in ((), ("--follow",)):
        done = machine.run("logs", "no-program", *arguments)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.startswith("attempt 1 of default/no-program never started: ")
        assert "/no/such/program" in done.stderr


def test_logs_follow_a_job_that_waits_through_a_killed_executor_to_its_last_attempt(own_machine: Machine) -> None:
    own_machine.start("--gpu", "T4:16GiB")
    go = own_machine.state_dir.parent / "go"
    given(own_machine, "before", f"until [ -e {go} ]; do sleep 0.05; done")
    script = 'echo "begin $MUXFLOW_ATTEMPT"; sleep 2; echo "end $MUXFLOW_ATTEMPT"; exit $((2 - MUXFLOW_ATTEMPT))'
    own_machine.json("submit", "-", stdin=job("two-tries", script, retries=1))
    following = own_machine.follow("logs", "two-tries", "--follow")
    try:
        assert following.stdout is not None
        assert following.stderr is not None
        assert following.stderr.readline().startswith("default/two-tries has not been started yet")
        go.touch()
        assert following.stdout.readline() == "begin 1\n"
        os.kill(own_machine.pid("executor"), signal.SIGKILL)
        output, notices = following.communicate(timeout=60)
    finally:
        following.kill()
        following.communicate()
    assert (following.returncode, output) == (0, "end 1\nbegin 2\nend 2\n")
    assert "has not been started yet" not in notices
    assert notices.count("attempt 2 of default/two-tries begins\n") == 1


def test_a_running_job_is_cancelled_for_good(machine: Machine) -> None:
    given(machine, "sleeps", "sleep 600")
    wait_for_state(machine, "sleeps", JobState.RUNNING)
    done = machine.run("cancel", "sleeps", "--wait", "--reason", "enough")
    assert (done.returncode, done.stdout) == (0, "default/sleeps: cancelled\n")
    assert not [command for command in machine.processes().values() if "sleep 600" in command]


def test_a_job_that_has_ended_cannot_be_cancelled(machine: Machine) -> None:
    given(machine, "over", "true", ended=True)
    done = machine.run("cancel", "over")
    assert (done.returncode, done.stderr) == (1, "muxflow: default/over has already finished\n")


def test_nodes_show_their_gpus(machine: Machine) -> None:
    (node,) = machine.json("nodes")
    assert (node["node"], node["alive"]) == ("node.1", True)
    assert [(each["gpu"]["kind"], each["gpu"]["memory_bytes"]) for each in node["gpus"]] == [
        ("T4", 16 * GIB),
        ("A100", 40 * GIB),
    ]
    assert "A100" in machine.run("nodes").stdout


# What happens


def test_events_tell_a_jobs_whole_way(machine: Machine) -> None:
    given(machine, "traced", "true", ended=True)
    done = machine.run("events", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    way = [event["kind"] for event in events if event["names"].get("job") == "traced"]
    assert way[:2] == ["jobs.submit", "jobs.accepted"]
    assert {"runs.started", "runs.exited"} <= set(way)
    assert way[-1] == "jobs.finished"
    times = [event["time_ns"] for event in events]
    assert times == sorted(times)


def test_a_subject_selects_events(machine: Machine) -> None:
    given(machine, "chosen", "true", ended=True)
    done = machine.run("events", "jobs.finished.default.chosen", "--since", "1h", "--json")
    assert [json.loads(line)["kind"] for line in done.stdout.splitlines()] == ["jobs.finished"]
    wrong = machine.run("events", "job")
    assert (wrong.returncode, "known are" in wrong.stderr) == (1, True)


def test_following_events_ends_quietly_with_ctrl_c(machine: Machine) -> None:
    following = machine.follow("events", "jobs.accepted", "--follow", "--since", "1m", "--json")
    try:
        given(machine, "heard", "true")
        assert following.stdout is not None
        event = json.loads(following.stdout.readline())
        while event["names"]["job"] != "heard":
            event = json.loads(following.stdout.readline())
        following.send_signal(signal.SIGINT)
        _, errors = following.communicate(timeout=DEADLINE_S)
        assert (following.returncode, errors) == (130, "")
    finally:
        following.kill()
        following.communicate()


def test_alerts_are_read_back(machine: Machine) -> None:
    done = machine.run("alerts", "--since", "1d")
    assert (done.returncode, done.stdout) == (0, "none in the last 24 h\n")


def test_what_nobody_could_handle_is_listed_shown_and_sent_again(machine: Machine) -> None:
    publish_plainly(machine, "muxflow.jobs.submit.default.garbled", b"this is no JSON")
    entry = wait_until(lambda: dead_letter(machine, "garbled"), "a dead letter")
    assert "not" in entry["letter"]["reason"].lower() or "JSON" in entry["letter"]["reason"]
    shown = machine.run("dead", "show", str(entry["number"])).stdout
    assert re.search(r"^payload +this is no JSON$", shown, re.MULTILINE)
    assert machine.run("dead", "replay", str(entry["number"])).returncode == 0
    wait_until(lambda: len(dead_letters(machine, "garbled")) == 2, "the letter came back")
    assert machine.run("dead", "show", "999999").returncode == 1


def dead_letters(machine: Machine, name: str) -> list[dict[str, Any]]:
    return [entry for entry in machine.json("dead", "list") if entry["letter"]["subject"].endswith(f".{name}")]


def dead_letter(machine: Machine, name: str) -> dict[str, Any] | None:
    return next(iter(dead_letters(machine, name)), None)


# Who may do what


def test_users_submit_and_follow_but_do_not_look_around(machine: Machine) -> None:
    mine = ("--credentials", str(machine.state_dir / "credentials/user-default.nk"))
    done = machine.run("submit", "-", "--wait", *mine, stdin=job("users", "echo mine"))
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.run("logs", "users", *mine).stdout == "mine\n"
    assert machine.run("status", "users", *mine).returncode == 0
    for command in (("nodes",), ("events", "--since", "1h"), ("alerts",), ("dead", "list")):
        refused = machine.run(*command, *mine)
        assert refused.returncode == 1, command
        assert refused.stderr.count("\n") == 1
        assert "role user" in refused.stderr
        assert "operator" in refused.stderr


def test_another_tenants_jobs_are_not_for_a_user(machine: Machine) -> None:
    mine = ("--credentials", str(machine.state_dir / "credentials/user-default.nk"))
    refused = machine.run("status", "other/job", *mine)
    assert refused.returncode == 1
    assert "tenant default" in refused.stderr


# Being connected


def test_without_a_server_a_command_ends_with_code_3(tmp_path: Path) -> None:
    nowhere = Machine(tmp_path)
    done = nowhere.run("jobs")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "start `muxflow up`" in done.stderr
    done = nowhere.run("jobs", "--server", "nats://127.0.0.1:1")
    assert (done.returncode, done.stderr) == (
        3,
        "muxflow: nats://127.0.0.1:1: nobody listens there; is `muxflow up` running?\n",
    )


def test_wrong_credentials_are_told_as_such(machine: Machine, tmp_path: Path) -> None:
    stranger = tmp_path / "operator.nk"
    stranger.write_text(generate_seed())
    done = machine.run("jobs", "--credentials", str(stranger))
    assert done.returncode == 3
    assert str(stranger) in done.stderr


def test_wrong_usage_ends_with_code_2(machine: Machine) -> None:
    assert machine.run("jobs", "--state", "runing").returncode == 2
    assert machine.run("events", "--since", "soon").returncode == 2
    assert machine.run("submit").returncode == 2


# From programs


def publish_plainly(machine: Machine, subject: str, payload: bytes) -> None:
    """Publish with a socket, without headers, as any NATS client can."""
    connection = json.loads((machine.state_dir / "connection.json").read_text())
    host, _, port = connection["server"].removeprefix("nats://").partition(":")
    key = nkeys.from_seed(bytearray((machine.state_dir / "credentials/user-default.nk").read_bytes().strip()))
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as sock, sock.makefile("rb") as lines:
        nonce = json.loads(lines.readline().removeprefix(b"INFO "))["nonce"]
        signature = base64.urlsafe_b64encode(key.sign(nonce.encode())).decode().rstrip("=")
        hello = {"verbose": False, "nkey": key.public_key.decode(), "sig": signature}
        sock.sendall(b"CONNECT " + json.dumps(hello).encode() + b"\r\n")
        sock.sendall(f"PUB {subject} {len(payload)}\r\n".encode() + payload + b"\r\nPING\r\n")
        assert lines.readline() == b"PONG\r\n"


def test_a_job_from_a_bare_socket_is_run_to_its_end(machine: Machine) -> None:
    spec = {"command": ["echo", "from a bare socket"], "gpu": {"memory_bytes": GIB}}
    publish_plainly(machine, "muxflow.jobs.submit.default.bare", json.dumps({"spec": spec}).encode())
    wait_for_state(machine, "bare", JobState.FINISHED)
    assert machine.run("logs", "bare").stdout == "from a bare socket\n"


async def test_a_client_hears_how_its_jobs_end(machine: Machine) -> None:
    async with connect(machine) as client:
        specs = [
            JobSpec(
                name=f"heard-{code}", command=("sh", "-c", f"exit {code}"), gpu=GpuRequest(memory_bytes=GIB), retries=0
            )
            for code in (0, 3)
        ]
        handles = [await client.submit(spec) for spec in specs]
        outcomes = await asyncio.wait_for(asyncio.gather(*(handle.outcome() for handle in handles)), DEADLINE_S)
        assert [outcome.state for outcome in outcomes] == [JobState.FINISHED, JobState.FAILED]
        assert [outcome.exit.code for outcome in outcomes if outcome.exit] == [0, 3]


async def test_an_outcome_that_came_before_is_found(machine: Machine) -> None:
    async with connect(machine) as client:
        spec = JobSpec(name="before", command=("true",), gpu=GpuRequest(memory_bytes=GIB))
        await asyncio.wait_for((await client.submit(spec)).outcome(), DEADLINE_S)
    async with connect(machine) as late:
        handle = await late.watch("before")
        assert (await asyncio.wait_for(handle.outcome(), DEADLINE_S)).succeeded


async def test_a_client_is_told_what_is_wrong(machine: Machine) -> None:
    async with connect(machine) as client:
        gang = JobSpec(name="gang-2", command=("true",), gpu=GpuRequest(memory_bytes=GIB, count=2))
        handle = await client.submit(gang)
        with pytest.raises(Rejected) as rejection:
            await asyncio.wait_for(handle.accepted(), DEADLINE_S)
        assert rejection.value.event.field == "spec.gpu.count"
        with pytest.raises(NotFound):
            await client.job("no-such-job")
    user = machine.state_dir / "credentials/user-default.nk"
    async with connect(machine, credentials=user) as client:
        with pytest.raises(NotAllowed):
            await client.nodes()


# Processes that die


def test_what_dies_is_started_again_and_the_work_goes_on(machine: Machine) -> None:
    for name in ("scheduler", "executor", "server"):
        pid = machine.pid(name)
        os.kill(pid, signal.SIGKILL)
        assert machine.report("ended", name=name)["how"] == "was killed by SIGKILL"
        assert machine.report("started", name=name)["pid"] != pid
    text = job("after-all-that", "echo still here")
    wait_until(lambda: machine.run("submit", "-", stdin=text).returncode == 0, "a submission is accepted")
    assert machine.json("submit", "-", "--wait", stdin=text)[0]["state"] == "finished"


def test_a_second_machine_in_the_same_directory_is_refused(machine: Machine) -> None:
    done = subprocess.run(
        [*up(machine.state_dir), "--gpu", "T4:16GiB"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert f"pid {machine.process.pid} already runs" in done.stderr


def up(state_dir: Path) -> list[str]:
    return [MUXFLOW, "up", "--state-dir", str(state_dir)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_and_the_next_time_goes_on(own_machine: Machine, number: signal.Signals) -> None:
    own_machine.start("--gpu", "T4:16GiB")
    given(own_machine, "long", "sleep 600")
    wait_for_state(own_machine, "long", JobState.RUNNING)
    seed = (own_machine.state_dir / "credentials/user-default.nk").read_bytes()
    own_machine.process.send_signal(number)
    own_machine.process.wait(DEADLINE_S)
    assert own_machine.process.returncode == 0
    assert own_machine.processes() == {}

    before = own_machine.ready
    own_machine.start()
    assert own_machine.ready["server"] == before["server"]
    assert own_machine.ready["ports"] == before["ports"]
    assert own_machine.ready["gpus"] == before["gpus"]
    assert (own_machine.state_dir / "credentials/user-default.nk").read_bytes() == seed
    wait_for_state(own_machine, "long", JobState.RUNNING)
    assert own_machine.json("status", "long")["record"]["attempt"] == 2


def test_a_signal_ends_a_machine_whose_output_nobody_reads(tmp_path: Path) -> None:
    with subprocess.Popen([*up(tmp_path / "state"), "--gpu", "T4:16GiB"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while b"ready in" not in process.stdout.readline():
            assert process.poll() is None
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0


def test_a_second_ctrl_c_does_not_wait_for_jobs(own_machine: Machine) -> None:
    own_machine.start("--gpu", "T4:16GiB")
    stubborn = job("stubborn", "trap '' TERM; sleep 600 & wait; sleep 600", stop_grace_s=600)
    own_machine.json("submit", "-", stdin=stubborn)
    wait_for_state(own_machine, "stubborn", JobState.RUNNING)
    own_machine.process.send_signal(signal.SIGINT)
    own_machine.report("stopping", hurried=False)
    own_machine.process.send_signal(signal.SIGINT)
    own_machine.process.wait(DEADLINE_S)
    own_machine.wait_gone(LEASE_S + DEADLINE_S)


def test_a_killed_supervisor_leaves_nothing_after_the_lease(own_machine: Machine) -> None:
    own_machine.start("--gpu", "T4:16GiB")
    given(own_machine, "orphan", "sleep 600")
    wait_for_state(own_machine, "orphan", JobState.RUNNING)
    own_machine.process.kill()
    own_machine.wait_gone(LEASE_S + DEADLINE_S)


# Bad surroundings


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*up(tmp_path / "state"), "--gpu", "T4:16GiB", "--port", port],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 1
    assert f"port {port} is taken" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--gpu", "T4"), 2, "write KIND:MEMORY"),
        (("--gpus", "none.toml"), 2, "none.toml: cannot be read"),
        (("--gpu", "T4:1GiB", "--set", "lease.node_s"), 2, "write section.key=value"),
        (("--gpu", "T4:1GiB", "--set", "lease.nod_s=2"), 1, "--set lease.nod_s=2: unknown key; did you mean 'node_s'?"),
        (("--gpu", "T4:1GiB", "--set", "executr.x=2"), 1, "--set executr.x=2: there is no section [executr]; did you"),
        (
            ("--gpu", "T4:1GiB", "--set", "foo.bar=1"),
            1,
            "known are bus, evictor, executor, http, lease, log, monitor, predictor, profiler, scheduler, tenants",
        ),
        (("--gpu", "T4:1GiB", "--set", "scheduler.retries=2"), 1, "scheduler does not start: "),
    ],
)
def test_what_cannot_be_run_is_told_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = subprocess.run(
        [*up(tmp_path / "state"), *arguments], capture_output=True, text=True, timeout=30, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert message in done.stderr


def test_without_gpus_it_is_shown_how_to_have_some(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").touch()  # also on a machine that has GPUs
    done = subprocess.run(
        up(tmp_path / "state"),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert "  muxflow up --simulate T4 --simulate A100" in lines
    assert "  muxflow up --gpu T4:16GiB --gpu A100:40GiB" in lines
    assert "  [[gpu]]" in lines
    assert '  memory = "16GiB"' in lines


def test_a_state_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for directory, message in ((tmp_path / "file/state", "Not a directory"), (tmp_path, "is not empty")):
        done = subprocess.run(
            [*up(directory), "--gpu", "T4:16GiB"], capture_output=True, text=True, timeout=30, check=False
        )
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert str(directory) in done.stderr
        assert message in done.stderr
