"""A job that testifies: it writes down when it lived, so that a test can prove what overlapped what.

Run as ``python -I -S witness.py FILE DURATION_S [--child]``. Appends lines ``<attempt> <pid> <event> <boottime ns>`` to
FILE: ``start``, a ``beat`` every 10 ms, and ``end``. With ``--child`` a grandchild in a session of its own beats on
after the main process: whoever stops the job must stop that as well.
"""

import os
import sys
import time

BEAT_S = 0.01


def testify(path: str, duration_s: float, *, child: bool) -> None:
    attempt = os.environ["MUXFLOW_ATTEMPT"]
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def say(event: str) -> None:
        line = f"{attempt} {os.getpid()} {event} {time.clock_gettime_ns(time.CLOCK_BOOTTIME)}\n"
        os.write(file, line.encode())

    say("start")
    if child and os.fork() == 0:
        os.setsid()
        while True:
            say("beat")
            time.sleep(BEAT_S)
    end = time.monotonic() + duration_s
    while time.monotonic() < end:
        say("beat")
        time.sleep(BEAT_S)
    say("end")


if __name__ == "__main__":
    testify(sys.argv[1], float(sys.argv[2]), child="--child" in sys.argv[3:])
