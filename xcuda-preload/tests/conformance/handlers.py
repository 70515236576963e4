"""How a Python program that uses CUDA takes SIGTERM and SIGINT: `handlers.py WAY`."""

import asyncio
import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path

from driver import begin, call, functions, launch, say, stream

KERNEL_NS = 2_000_000


def summon(number: int) -> None:
    """Has a child send this process a signal once it sleeps."""
    sys.stdout.flush()
    parent = os.getpid()
    if os.fork():
        return
    while os.getppid() == parent:
        if ") S" in Path(f"/proc/{parent}/stat").read_text():
            os.kill(parent, number)
            break
    os._exit(0)


def say_and_exit(number: int, frame: object) -> None:
    launch(kernel, 1000, where)
    call("cuStreamSynchronize", where)
    say("heard", number)
    sys.exit(7)


def default() -> None:
    launch(kernel, KERNEL_NS, where)
    summon(signal.SIGTERM)
    time.sleep(60)


def interrupted() -> None:
    summon(signal.SIGINT)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        say("interrupted")
        call("cuStreamSynchronize", where)
        sys.exit(9)


def handler() -> None:
    signal.signal(signal.SIGTERM, say_and_exit)
    launch(kernel, KERNEL_NS, where)
    summon(signal.SIGTERM)
    time.sleep(60)


def handler_by_turns() -> None:
    for wanted in (say_and_exit, signal.SIG_IGN, signal.SIG_DFL, say_and_exit, signal.SIG_DFL):
        before = signal.signal(signal.SIGTERM, wanted)
        say(getattr(before, "__name__", before))
    summon(signal.SIGTERM)
    time.sleep(60)


def handler_that_dies_by_it() -> None:
    def die(number: int, frame: object) -> None:
        say("dies")
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        say("went on")

    signal.signal(signal.SIGTERM, die)
    summon(signal.SIGTERM)
    time.sleep(60)


def loop() -> None:
    async def run() -> None:
        asked = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
        summon(signal.SIGTERM)
        await asked.wait()
        say("asked")

    asyncio.run(run())
    sys.exit(8)


def waiting_thread() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    waiting = threading.Thread(target=lambda: say(int(signal.sigwait({signal.SIGTERM}))))
    waiting.start()
    summon(signal.SIGTERM)
    waiting.join()


def dump() -> None:
    faulthandler.register(signal.SIGUSR1, all_threads=False, chain=False)
    signal.raise_signal(signal.SIGUSR1)
    say("dumped")


def threads() -> None:
    def work() -> None:
        call("cuCtxSetCurrent", context)
        while True:
            launch(kernel, 50_000, where)

    for _ in range(2):
        threading.Thread(target=work, daemon=True).start()
    summon(signal.SIGTERM)
    time.sleep(60)


WAYS = {
    "default": default,
    "interrupted": interrupted,
    "handler": handler,
    "handler-by-turns": handler_by_turns,
    "handler-dies": handler_that_dies_by_it,
    "loop": loop,
    "waiting-thread": waiting_thread,
    "dump": dump,
    "threads": threads,
}

context = begin()
[kernel] = functions("spin")
where = stream()
launch(kernel, 1000, where)
WAYS[sys.argv[1]]()
