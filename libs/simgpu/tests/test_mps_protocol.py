"""The MPS control protocol as far as it goes without a GPU: the stand-in's, and NVIDIA's own where it can be had.

$MUXFLOW_REAL_MPS_CONTROL names the folder of NVIDIA's `nvidia-cuda-mps-control`, release 550 or newer (Debian's
package nvidia-cuda-mps has it); else it is looked for on the PATH.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PROGRAM = "nvidia-cuda-mps-control"
NOBODY = 65534
DEADLINE_S = 10


class Control:
    """One control daemon's programs and directories."""

    def __init__(self, program: str, folder: Path) -> None:
        self.program = program
        self.pipe, self.log = folder / "pipe", folder / "log"
        self.environ = {
            **os.environ,
            "PATH": f"{Path(program).parent}:{os.environ['PATH']}",
            "CUDA_MPS_PIPE_DIRECTORY": str(self.pipe),
            "CUDA_MPS_LOG_DIRECTORY": str(self.log),
        }
        self.environ.pop("MUXFLOW_SIMGPU", None)
        self.environ.pop("CUDA_VISIBLE_DEVICES", None)

    def run(self, *arguments: str, stdin: str = "", user: int | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.program, *arguments],
            input=stdin,
            env=self.environ,
            user=user,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def ask(self, *commands: str, user: int | None = None) -> str:
        done = self.run(stdin="".join(f"{command}\n" for command in commands), user=user)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def start(self, extra: Mapping[str, str] | None = None) -> None:
        self.environ |= extra or {}
        done = self.run("-d")
        assert (done.returncode, done.stdout) == (0, "")

    def pid(self) -> int:
        return int((self.pipe / f"{PROGRAM}.pid").read_text())

    def wait_for_log(self, words: str) -> None:
        """Waits until the control log has these words."""
        deadline = time.monotonic() + DEADLINE_S
        while words not in (self.log / "control.log").read_text():
            assert time.monotonic() < deadline, words
            time.sleep(0.005)


def real_program() -> str | None:
    """NVIDIA's control program; ours, which may stand on the PATH too, has NVML beside it."""
    folder = os.environ.get("MUXFLOW_REAL_MPS_CONTROL")
    found = shutil.which(PROGRAM, path=folder)
    return None if found is None or (Path(found).parent / "libnvidia-ml.so.1").exists() else found


REAL = real_program()


@pytest.fixture(params=["stand-in", *(["NVIDIA's"] if REAL else [])])
def control(request: pytest.FixtureRequest, native: Path) -> Iterator[Control]:
    """Control programs without a daemon."""
    program = str(native / PROGRAM) if request.param == "stand-in" else str(REAL)
    with tempfile.TemporaryDirectory(prefix="mps-", dir="/dev/shm") as folder:
        Path(folder).chmod(0o755)
        control = Control(program, Path(folder))
        yield control
        if (control.pipe / f"{PROGRAM}.pid").exists():
            pid = control.pid()
            control.run(stdin="quit -t 0\n")
            wait_for_end(pid)


def has_ended(pid: int) -> bool:
    """Whether the process is gone, or a zombie that somebody else is to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for_end(pid: int) -> None:
    """A daemon in the background is nobody's child that we could wait for."""
    deadline = time.monotonic() + DEADLINE_S
    while not has_ended(pid):
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def daemon(control: Control) -> Control:
    control.start()
    return control


@pytest.mark.skipif(REAL is None, reason="NVIDIA's MPS control is not here; MUXFLOW_REAL_MPS_CONTROL names its folder")
def test_what_is_taken_for_nvidias_program_is_nvidias() -> None:
    help_text = subprocess.run([str(REAL), "-h"], capture_output=True, text=True, check=True).stdout
    assert "NVIDIA Corporation" in help_text


def test_without_a_daemon_the_front_end_says_so(control: Control) -> None:
    done = control.run(stdin="get_server_list\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Cannot find MPS control daemon process\n"


def test_a_second_daemon_is_refused(daemon: Control) -> None:
    done = daemon.run("-d")
    assert done.returncode == 1
    assert done.stdout == "An instance of this daemon is already running\n"


def test_a_directory_that_cannot_be_is_refused(control: Control) -> None:
    control.environ["CUDA_MPS_PIPE_DIRECTORY"] = "/nowhere/at/all"
    done = control.run("-d")
    assert done.returncode == 1
    assert done.stdout == "Cannot access CUDA_MPS_PIPE_DIRECTORY=/nowhere/at/all\n"


@pytest.mark.parametrize(
    ("commands", "answer"),
    [
        (["get_server_list"], ""),
        (["  get_server_list  and more"], ""),
        (["ps"], "Server not found\n"),
        (["ps -p 1"], "Server 1 not found\nServer 1 not found\n\n"),
        (["ps -p"], "Server 0 not found\nServer 0 not found\n\n"),
        (["ps x"], "Server not found\n"),
        (["get_server_status"], "A server PID is required\n"),
        (["get_server_status x"], "A server PID is required\n"),
        (["get_server_status 1"], "Server 1 not found\n"),
        (["get_client_list"], "Server 0 not found\n"),
        (["get_client_list 1"], "Server 1 not found\n"),
        (["get_device_client_list"], ""),
        (["get_device_client_list 1"], "Server 1 not found\n"),
        (["shutdown_server"], "Server 0 not found\n"),
        (["shutdown_server 1 -f"], "Server 1 not found\n"),
        (["start_server"], "A user id (UID) is required to start a new server\n"),
        (["start_server -uid x"], "A user id (UID) is required to start a new server\n"),
        (["terminate_client 1 2"], "Server 1 not found\nServer 1 not found!\n1\n"),
        (["get_default_active_thread_percentage"], "100.0\n"),
        (["set_default_active_thread_percentage 50"], "50.0\n"),
        (["set_default_active_thread_percentage 33.37", "get_default_active_thread_percentage"], "33.4\n33.4\n"),
        (["set_default_active_thread_percentage 0"], "100.0\n"),
        (["set_default_active_thread_percentage 101"], "100.0\n"),
        (["set_default_active_thread_percentage abc"], "100.0\n"),
        (["set_default_active_thread_percentage"], "100.0\n"),
        (["get_active_thread_percentage 1"], "Server 1 not found\n"),
        (["set_active_thread_percentage 1 50"], "Server 1 not found\n"),
        (["get_default_device_pinned_mem_limit 0"], ""),
        (["set_default_device_pinned_mem_limit 0 2G", "get_default_device_pinned_mem_limit 0"], "2G\n"),
        (["set_default_device_pinned_mem_limit 0 512M", "get_default_device_pinned_mem_limit 0"], "512M\n"),
        (["set_default_device_pinned_mem_limit 0 1536M", "get_default_device_pinned_mem_limit 0"], "1G\n"),
        (["set_default_device_pinned_mem_limit 0 x", "get_default_device_pinned_mem_limit 0"], ""),
        (["set_default_device_pinned_mem_limit -1 2G", "get_default_device_pinned_mem_limit 100"], ""),
        (["get_device_pinned_mem_limit 1 0"], "Server 1 not found\n"),
        (["set_device_pinned_mem_limit 1 0 1G"], "Server 1 not found\n"),
        (["get_default_client_priority"], "0\n"),
        (["set_default_client_priority 1", "get_default_client_priority"], "1\n"),
        (["set_default_client_priority 2"], "Invalid priority value - must be 0 or 1!\n"),
        (["help"], 'Unknown command "help"\n'),
        (["GET_SERVER_LIST"], 'Unknown command "GET_SERVER_LIST"\n'),
        (["", "  "], 'Unknown command ""\nUnknown command ""\n'),
    ],
    ids=lambda value: "; ".join(value) if isinstance(value, list) else "",
)
def test_a_command_has_its_answer(daemon: Control, commands: list[str], answer: str) -> None:
    assert daemon.ask(*commands) == answer


@pytest.mark.parametrize(
    ("variable", "value", "question", "answer"),
    [
        ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "40", "get_default_active_thread_percentage", "40.0\n"),
        ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "0", "get_default_active_thread_percentage", "100.0\n"),
        ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "x", "get_default_active_thread_percentage", "100.0\n"),
        ("CUDA_MPS_CLIENT_PRIORITY", "1", "get_default_client_priority", "1\n"),
        ("CUDA_MPS_CLIENT_PRIORITY", "2", "get_default_client_priority", "0\n"),
    ],
)
def test_the_environment_sets_defaults(control: Control, variable: str, value: str, question: str, answer: str) -> None:
    control.start({variable: value})
    assert control.ask(question) == answer


def test_a_server_without_a_gpu_fails_and_the_daemon_goes_on(daemon: Control) -> None:
    assert daemon.ask("start_server -uid 0") == ""
    daemon.wait_for_log("exited with status 1")
    assert daemon.ask("get_server_list", "ps") == "Server not found\n"


def test_commands_and_answers_are_logged_line_by_line(daemon: Control) -> None:
    daemon.ask("terminate_client 1 2")
    daemon.wait_for_log("UI closed")
    lines = [line.partition("] ")[2] for line in (daemon.log / "control.log").read_text().splitlines()]
    start = lines.index("Cmd:terminate_client 1 2")
    assert lines[start : start + 4] == ["Cmd:terminate_client 1 2", "Server 1 not found", "Server 1 not found!", "1"]


def test_while_one_front_end_is_there_another_one_gets_no_answer(daemon: Control) -> None:
    with subprocess.Popen(
        [daemon.program], env=daemon.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdin is not None
        first.stdin.write("get_default_client_priority\n")
        first.stdin.flush()
        daemon.wait_for_log("Cmd:get_default_client_priority")
        second = daemon.run(stdin="get_default_client_priority\n")
        assert second.stdout == ""
        first.communicate(timeout=DEADLINE_S)
    assert daemon.ask("get_default_client_priority") == "0\n"


def test_quit_ends_the_daemon_and_the_front_end(daemon: Control) -> None:
    pid = daemon.pid()
    assert daemon.ask("quit") == ""
    wait_for_end(pid)
    assert not (daemon.pipe / f"{PROGRAM}.pid").exists()


def test_after_a_daemon_was_killed_another_one_starts(daemon: Control) -> None:
    pid = daemon.pid()
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    assert daemon.run(stdin="get_server_list\n").returncode == 1
    daemon.start()
    assert daemon.ask("get_server_list") == ""
    assert daemon.pid() != pid


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_other_users_may_look_and_not_touch(daemon: Control) -> None:
    assert daemon.ask("get_default_client_priority", user=NOBODY) == "0\n"
    assert daemon.ask("set_default_client_priority 1", user=NOBODY).startswith("Insufficient privileges for UID 65534")
    assert daemon.ask("quit", user=NOBODY) == "Not enough privilege to execute quit command\n"
    assert daemon.ask("get_default_client_priority") == "0\n"
