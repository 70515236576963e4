"""One process at a time uses the state directory of a service."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO


def hold(state_dir: Path, service: str) -> IO[str]:
    """Take the directory for as long as the file that is given back is open, or this process lives.

    The file holds our process id, for people. Raises OSError, also when another process of the service has it.
    """
    file = (state_dir / "lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
    except BlockingIOError:
        file.close()
        raise OSError(f"in use by another {service}") from None
    except OSError:
        file.close()
        raise
    return file
