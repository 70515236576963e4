"""Where the libraries written in C lie, and what goes with them: beside this file, put there by `make native`, and in
wheels from the start.
"""

from __future__ import annotations

from pathlib import Path


def path(name: str) -> Path:
    """Find a library, ``libxcuda.so`` or ``libmuxflow_pages.so``, or ``calls.txt``.

    Raises FileNotFoundError, saying what to do, when it has not been built.
    """
    found = Path(__file__).with_name(name)
    if not found.is_file():
        raise FileNotFoundError(
            f"{found} is not there: run `make native` in the checkout (it needs GNU Make and a C compiler; "
            "on Debian and Ubuntu: apt install make gcc libc6-dev), or install muxflow from a wheel"
        )
    return found
