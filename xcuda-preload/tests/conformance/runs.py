"""How Python programs that use CUDA work and end: `runs.py WAY`."""

import atexit
import concurrent.futures
import ctypes
import multiprocessing
import os
import subprocess
import sys
import threading

from driver import allocate, begin, byref, c_size_t, c_uint64, call, functions, launch, result_of, say, stream


def work(count: int) -> int:
    """Launches, copies, and gives what came back."""
    begin()
    [kernel] = functions("set")
    where, word = stream(), allocate(64)
    call("cuMemsetD8_v2", c_uint64(word), 0, c_size_t(64))
    for _ in range(count):
        launch(kernel, word, where)
    call("cuStreamSynchronize", where)
    back = ctypes.c_uint32()
    call("cuMemcpyDtoH_v2", byref(back), c_uint64(word), c_size_t(4))
    call("cuMemFree_v2", c_uint64(word))
    return back.value


def threads() -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        say(list(pool.map(work, range(8))))


def spawned() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        say(pool.map(work, [3, 5]))


def forked() -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        say(pool.map(work, [3, 5]))


def commands() -> None:
    say(work(1))
    say(subprocess.run(["sh", "-c", "kill -TERM $$"], check=False).returncode)
    say(subprocess.run(["cat"], input=b"through\n", stdout=subprocess.PIPE, check=False).stdout)


def at_exit() -> None:
    atexit.register(lambda: say(work(2)))
    say(work(1))
    sys.exit(3)


def error() -> None:
    work(1)
    raise RuntimeError("of the program's own")


def error_in_a_thread() -> None:
    thread = threading.Thread(target=lambda: call("cuCtxSetCurrent", ctypes.c_void_p(8)))
    threading.excepthook = lambda args: say(args.exc_type.__name__)
    thread.start()
    thread.join()


def left_running() -> None:
    def run() -> None:
        while True:
            work(1)

    threading.Thread(target=run, daemon=True).start()
    say(work(4))


def refused() -> None:
    begin()
    none = c_uint64()
    say(result_of("cuMemAlloc_v2", byref(none), c_size_t(0)), result_of("cuMemAlloc_v2", None, c_size_t(8)))
    say(result_of("cuMemAlloc_v2", byref(none), c_size_t(1 << 50)), result_of("cuMemFree_v2", c_uint64(7)))
    say(result_of("cuLaunchKernel", None, 1, 1, 1, 1, 1, 1, 0, None, None, None))
    say(result_of("cuGraphLaunch", None, None), result_of("cuStreamDestroy_v2", None))
    say(result_of("cuMemGetInfo_v2", None, None), result_of("cuGetProcAddress_v2", None, None, 0, c_uint64(0), None))


def without_a_context() -> None:
    say(result_of("cuCtxSynchronize"), result_of("cuInit", 0), result_of("cuCtxSynchronize"))
    say(result_of("cuMemAlloc_v2", byref(c_uint64()), c_size_t(8)), result_of("cuInit", 1))
    sys.stdout.flush()
    os._exit(2)


WAYS = {
    "threads": threads,
    "spawned": spawned,
    "forked": forked,
    "commands": commands,
    "at-exit": at_exit,
    "error": error,
    "error-in-a-thread": error_in_a_thread,
    "left-running": left_running,
    "refused": refused,
    "without-a-context": without_a_context,
}

if __name__ == "__main__":
    WAYS[sys.argv[1]]()
