"""How programs are started, what they see, and how their end is told."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from executing_node import Node, alive, python, slot_of, until
from muxflow.contracts import ExitStatus, RunEvicted, RunExited, RunStarted, StopCause


async def test_exit_code_is_told_as_it_was(node: Node) -> None:
    exited = await node.exit_of("sh", "-c", "exit 7")
    assert exited.exit == ExitStatus(code=7)
    assert 0 < exited.started_ns < exited.ended_ns


async def test_success_is_told_after_start(node: Node) -> None:
    exited = await node.exit_of("true")
    assert exited.exit.succeeded
    assert [type(event) for event in node.told] == [RunStarted, RunExited]


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGPIPE", "SIGXFSZ", "SIGRTMIN"])
async def test_signal_that_killed_it_is_named(node: Node, name: str) -> None:
    exited = await node.exit_of("sh", "-c", f"kill -{int(signal.Signals[name])} $$")
    assert (exited.exit.code, exited.exit.signal) == (None, name)


async def test_real_time_signal_is_named_relative_to_the_first(node: Node) -> None:
    exited = await node.exit_of("sh", "-c", f"kill -{signal.SIGRTMIN + 3} $$")
    assert exited.exit.signal == "SIGRTMIN+3"


async def test_missing_command_is_an_error_that_names_it(node: Node) -> None:
    exited = await node.exit_of("no-such-program", "--flag")
    assert exited.exit == ExitStatus(error="command not found: 'no-such-program'")
    assert exited.started_ns == 0


async def test_error_that_names_something_huge_is_cut(node: Node) -> None:
    exited = await node.exit_of("x" * 110_000)
    assert str(exited.exit.error).endswith("xxx…")
    assert len(str(exited.exit.error)) == 2_000


async def test_reasons_that_are_too_long_are_cut(node: Node) -> None:
    declined = slot_of("true", job="declined")
    node.runner.decline(declined.key, "GPU-1", StopCause.DECISION, "x" * 100_000)
    assert len((await node.fact(RunExited, "declined")).exit.error) == 2_000
    stopped = node.start("sleep", "1000")
    await node.fact(RunStarted)
    node.runner.stop(stopped.key, StopCause.DECISION, "x" * 100_000)
    assert len((await node.fact(RunEvicted)).reason) == 2_000


async def test_file_that_is_not_executable_is_an_error(node: Node, tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("no program")
    exited = await node.exit_of(str(tmp_path / "data.txt"))
    assert exited.exit.error == f"not executable: '{tmp_path}/data.txt' (Permission denied)"


async def test_executable_file_that_is_no_program_is_an_error(node: Node, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no program")
    (tmp_path / "data").chmod(0o755)
    exited = await node.exit_of(str(tmp_path / "data"))
    assert "does not begin with '#!'" in str(exited.exit.error)


async def test_missing_interpreter_is_told_apart_from_a_missing_command(node: Node, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/no/such/interpreter\n")
    (tmp_path / "script").chmod(0o755)
    exited = await node.exit_of(str(tmp_path / "script"))
    assert "interpreter" in str(exited.exit.error)


async def test_missing_workdir_is_an_error_that_names_it(node: Node) -> None:
    exited = await node.exit_of("true", workdir="/no/such/dir")
    assert exited.exit.error == "cannot enter workdir '/no/such/dir': No such file or directory"


async def test_arguments_that_are_too_long_are_an_error(node: Node) -> None:
    exited = await node.exit_of("true", "x" * 3_000_000)
    assert exited.exit.error == "cannot start 'true': Argument list too long"


async def test_nul_in_an_argument_is_an_error(node: Node) -> None:
    exited = await node.exit_of("true", "a\0b")
    assert exited.exit.error == "cannot start 'true': Invalid argument"


async def test_nul_in_the_environment_is_an_error(node: Node) -> None:
    exited = await node.exit_of("true", env={"A": "a\0b"})
    assert exited.exit.error == "cannot start: a NUL in the environment"


async def test_image_needs_another_runner(node: Node) -> None:
    exited = await node.exit_of("true", image="debian")
    assert exited.exit.error == "this node cannot run container images"


async def test_program_sees_a_clean_environment(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUXFLOW_BUS__CREDENTIALS", "/secret/seed.nk")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "executor's own")
    await node.exit_of(
        *python("import json, os; print(json.dumps(dict(os.environ)))"), env={"LEARNING_RATE": "0.1"}, sm_share_pct=40
    )
    seen = json.loads(node.output())
    assert seen.pop("MUXFLOW_RUN_ID") == node.attempt().intent.run_id
    expected = {
        "LEARNING_RATE": "0.1",
        "PYTHONUNBUFFERED": "1",
        "MUXFLOW_TENANT": "default",
        "MUXFLOW_JOB": "job",
        "MUXFLOW_ATTEMPT": "1",
        "MUXFLOW_NODE": "node.a",
        "MUXFLOW_GPU": "GPU-1",
        "MUXFLOW_CHECKPOINT_DIR": str(node.state_dir / "checkpoints" / "default.job"),
        "MUXFLOW_CHECKPOINT_MARK": str(node.directory() / "checkpointed"),
        "CUDA_VISIBLE_DEVICES": "GPU-1",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "40",
    }
    base = {name for name in ("PATH", "HOME", "LANG", "USER", "TZ", "TMPDIR", "LC_CTYPE") if name in seen}
    assert {name: value for name, value in seen.items() if name not in base} == expected


async def test_program_has_its_own_session_and_no_descriptor_of_ours(node: Node) -> None:
    code = """
import os
print(os.getsid(0) == os.getpid() == os.getpgid(0), os.readlink("/proc/self/fd/0"), sorted(os.listdir("/proc/self/fd")))
"""
    await node.exit_of(*python(code))
    assert node.output() == "True /dev/null ['0', '1', '2', '3']\n"  # 3 is the listing itself


async def test_program_blocks_and_ignores_no_signal(node: Node) -> None:
    await node.exit_of("grep", "-E", "Sig(Blk|Ign)", "/proc/self/status")
    masks = [int(line.split()[1], 16) for line in node.output().splitlines()]
    of_libc = 0b11 << 31  # two signals that glibc lets nobody touch
    assert [mask & ~of_libc for mask in masks] == [0, 0]


async def test_program_gives_way_to_others_on_the_processors(node: Node) -> None:
    await node.exit_of("nice")
    assert int(node.output()) == min(os.nice(0) + 5, 19)


async def test_default_workdir_is_scratch_of_the_attempt(node: Node) -> None:
    await node.exit_of("sh", "-c", "pwd; echo x > file")
    assert node.output() == f"{node.directory()}/work\n"


async def test_secret_reaches_the_program_and_nothing_else(node: Node) -> None:
    value = "correct-horse-battery-staple"
    (node.secrets_dir / "default").mkdir(parents=True)
    (node.secrets_dir / "default" / "token").write_text(f"{value}\n")
    node.start(
        "sh",
        "-c",
        "test ${#TOKEN} = 28 && echo right; sleep 60",
        secrets={"TOKEN": "token"},
    )
    await until(lambda: node.output() == "right\n")
    shim = Path("/proc") / str(node.shim_pid())
    assert value.encode() not in (shim / "environ").read_bytes() + (shim / "cmdline").read_bytes()
    on_disk = [path for path in node.state_dir.rglob("*") if path.is_file() and value.encode() in path.read_bytes()]
    assert on_disk == []


async def test_missing_secret_is_named(node: Node) -> None:
    exited = await node.exit_of("true", secrets={"TOKEN": "tokn"})
    assert exited.exit.error == "secret 'tokn' of tenant 'default' is not on this node"


async def test_secret_of_another_tenant_is_out_of_reach(node: Node) -> None:
    (node.secrets_dir / "other").mkdir(parents=True)
    (node.secrets_dir / "other" / "token").write_text("x")
    exited = await node.exit_of("true", secrets={"TOKEN": "../other/token"})
    assert "a name is of letters" in str(exited.exit.error)


async def test_huge_output_stays_within_its_bound(node: Node) -> None:
    await node.exit_of(*python("import sys; sys.stdout.write('x' * 10_000_000 + 'end')"))
    segments = sorted(node.directory().glob("output.*"))
    sizes = [path.stat().st_size for path in segments]
    assert len(segments) == 2
    assert sum(sizes) <= 65_536
    assert int(segments[-1].name.removeprefix("output.")) + sizes[-1] == 10_000_003
    assert segments[-1].read_text().endswith("end")


async def test_output_is_on_disk_before_the_exit_is_told(node: Node) -> None:
    for number in range(5):
        await node.exit_of("sh", "-c", "echo out; echo err >&2", job=f"j{number}")
        assert node.output(f"j{number}") == "out\nerr\n"


async def test_daemonised_grandchildren_end_with_the_program(node: Node, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = f"""
import os, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(0, 3)
            os.environ.clear()
            with open({str(pids)!r}, "a") as file: file.write(f"{{os.getpid()}}\\n")
            os.execve("/bin/sleep", ["sleep", "1000"], {{}})
        os._exit(0)
while not os.path.exists({str(pids)!r}) or len(open({str(pids)!r}).readlines()) < 3: time.sleep(0.01)
"""
    exited = await node.exit_of(*python(code))
    assert exited.exit.succeeded
    grandchildren = [int(pid) for pid in pids.read_text().split()]
    assert len(grandchildren) == 3
    assert [pid for pid in grandchildren if alive(pid)] == []


async def test_background_child_that_holds_the_output_open_does_not_delay_the_end(node: Node) -> None:
    exited = await node.exit_of("sh", "-c", "sleep 1000 & exit 4")
    assert exited.exit.code == 4


async def test_program_that_closes_its_output_runs_on(node: Node, tmp_path: Path) -> None:
    node.start("sh", "-c", f"exec >&- 2>&-; touch {tmp_path}/closed; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done")
    await until((tmp_path / "closed").exists)
    (tmp_path / "go").touch()
    assert (await node.fact(RunExited)).exit.succeeded


async def test_declined_attempt_is_told_as_ended_and_never_started(node: Node) -> None:
    slot = slot_of("true")
    node.runner.decline(slot.key, "GPU-1", StopCause.DECISION, "withdrawn")
    exited = await node.fact(RunExited)
    assert exited.exit == ExitStatus(error="not started: withdrawn", stopped_by=StopCause.DECISION)
    await node.restart()
    node.runner.start(slot, "GPU-1")
    assert len({event.id for event in node.told}) == 1
    assert not (node.directory() / "started.json").exists()


async def test_killed_waiting_shim_costs_nothing(node: Node) -> None:
    (waiting,) = node.processes()
    os.kill(waiting, signal.SIGKILL)
    await until(lambda: not alive(waiting))
    assert (await node.exit_of("true")).exit.succeeded
