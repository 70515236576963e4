"""Starting the program, and wording how it started and ended."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from typing import TYPE_CHECKING, NoReturn

from muxflow_executor.shim.descendants import die_with_parent, fork_into, make_cgroup
from muxflow_executor.shim.records import shorten

if TYPE_CHECKING:
    from typing import Any

    from muxflow_executor.shim.output import Output


def start(order: dict[str, Any], environment: dict[bytes, bytes], output: Output) -> tuple[int, str | None]:
    """Start the program; give back its pid, and in words what went wrong if it could not be started."""
    make_cgroup(order["cgroup"])
    failed_read, failed_write = os.pipe()
    pid = fork_into(order["cgroup"])
    if pid == 0:
        _become_program(order, environment, output.write_end, failed_write)
    os.close(failed_write)
    output.leave_to_program()
    with open(failed_read, "rb") as failed:
        failure = failed.read()  # ends without a byte when exec has closed the other end
    if not failure:
        return pid, None
    os.waitpid(pid, 0)
    step, number = failure.decode().split()
    return pid, shorten(_explain(step, int(number), order))


def _become_program(order: dict[str, Any], environment: dict[bytes, bytes], output_fd: int, failed_fd: int) -> NoReturn:
    """In the child: take on the program's surroundings and become it."""
    step = "prepare"
    try:
        os.setsid()
        die_with_parent()
        if os.getppid() != order["shim_pid"]:  # the shim died before the kernel knew our wish
            os._exit(127)
        os.dup2(output_fd, 1)
        os.dup2(output_fd, 2)
        for number in range(1, signal.NSIG):  # what is ignored would stay so through exec, Python's SIGPIPE too
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.nice(order.get("nice", 0))
        step = "workdir"
        os.chdir(order["workdir"])
        step = "exec"
        os.execvpe(order["argv"][0], order["argv"], environment)  # noqa: S606 - no shell is what we want
    except OSError as error:
        os.write(failed_fd, f"{step} {error.errno or errno.EIO}".encode())
    except ValueError:  # a NUL inside an argument
        os.write(failed_fd, f"{step} {errno.EINVAL}".encode())
    finally:
        os._exit(127)


def _explain(step: str, number: int, order: dict[str, Any]) -> str:
    """Word a failed start for the people who submitted the job."""
    program, reason = order["argv"][0], os.strerror(number)
    if step == "workdir":
        return f"cannot enter workdir {order['workdir']!r}: {reason}"
    if step == "exec" and number in {errno.ENOENT, errno.ENOTDIR}:
        if "/" in program and os.path.exists(os.path.join(order["workdir"], program)):
            return f"cannot run {program!r}: the interpreter or loader that it names is missing"
        return f"command not found: {program!r}"
    if step == "exec" and number in {errno.EACCES, errno.EPERM}:
        return f"not executable: {program!r} ({reason})"
    if step == "exec" and number == errno.ENOEXEC:
        return f"not executable: {program!r} is no program for this machine and does not begin with '#!'"
    return f"cannot start {program!r}: {reason}"


def ended(status: int) -> dict[str, Any]:
    """Turn a wait status into `code` and `signal`."""
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "signal": None} if code >= 0 else {"code": None, "signal": _signal_name(-code)}


def _signal_name(number: int) -> str:
    if number > signal.SIGRTMIN:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
    return signal.Signals(number).name
