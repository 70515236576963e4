"""NVML, open once per process and shared by its threads; what its errors mean for whoever asks.

`pynvml` (distribution nvidia-ml-py) is imported when NVML is first opened: programs that only name GPUs stay small.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from enum import Enum
from typing import Any, Final

_REOPEN_WAIT_S: Final = 2.0
"""How long a renewal waits for calls under way: a driver that hangs in one keeps NVML as it is."""


class Trouble(Enum):
    """What an error of NVML means."""

    UNSUPPORTED = "unsupported"
    """This GPU, driver or user is never given it: it is not asked again."""
    NOTHING = "nothing"
    """There is no such thing now: no process, no newer sample."""
    LOST = "lost"
    """The GPU does not answer any more."""
    DRIVER = "driver"
    """The driver or its library went away: NVML must be opened anew."""
    FAILED = "failed"
    """This call failed this time."""


_MEANINGS: Final = {
    3: Trouble.UNSUPPORTED,  # NOT_SUPPORTED
    4: Trouble.UNSUPPORTED,  # NO_PERMISSION
    13: Trouble.UNSUPPORTED,  # FUNCTION_NOT_FOUND: an older driver
    25: Trouble.UNSUPPORTED,  # ARGUMENT_VERSION_MISMATCH: an older driver
    26: Trouble.UNSUPPORTED,  # DEPRECATED
    6: Trouble.NOTHING,  # NOT_FOUND
    21: Trouble.NOTHING,  # NO_DATA
    15: Trouble.LOST,  # GPU_IS_LOST
    16: Trouble.LOST,  # RESET_REQUIRED
    28: Trouble.LOST,  # GPU_NOT_FOUND
    1: Trouble.DRIVER,  # UNINITIALIZED
    9: Trouble.DRIVER,  # DRIVER_NOT_LOADED
    12: Trouble.DRIVER,  # LIBRARY_NOT_FOUND
    18: Trouble.DRIVER,  # LIB_RM_VERSION_MISMATCH: a new driver under the library that is loaded
}
"""By the numbers of nvml.h (`nvmlReturn_t`), which never change."""

VERSION_MISMATCH: Final = 18
"""Only a new process can load the library that fits the new driver."""


def meaning(code: int) -> Trouble:
    """What an `nvmlReturn_t` that is not SUCCESS means. Unknown ones are failures of one call."""
    return _MEANINGS.get(code, Trouble.FAILED)


class NvmlUnavailable(Exception):  # noqa: N818 - it reads as what the operator is told
    """NVML cannot be opened. The message is one line; `code` is NVML's, 12 where there is no library."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Nvml:
    """The library, from `open` to `close`.

    Every thread makes its calls within `using`. The number it gets tells which opening of NVML its handles belong to:
    after another thread has renewed it, all handles must be taken anew.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users = 0
        self._renewing = False
        self._opening = 0

    def open(self) -> None:
        """Load and initialise. Raises `NvmlUnavailable`."""
        _initialise()
        self._opening += 1

    def close(self) -> None:
        """Give it back."""
        with contextlib.suppress(Exception):
            _library().nvmlShutdown()

    @contextlib.contextmanager
    def using(self) -> Iterator[int]:
        """Keep it open for the length of the block; waits while it is being renewed."""
        with self._changed:
            self._changed.wait_for(lambda: not self._renewing)
            self._users += 1
            opening = self._opening
        try:
            yield opening
        finally:
            with self._changed:
                self._users -= 1
                if self._renewing:
                    self._changed.notify_all()

    def renew(self, seen: int) -> None:
        """Open it anew, unless somebody has done so since opening `seen`. Not to be called within `using`.

        Raises `NvmlUnavailable`, also while another thread's call hangs in the driver.
        """
        with self._changed:
            if self._renewing or self._opening != seen:
                return
            self._renewing = True
            idle = self._changed.wait_for(lambda: self._users == 0, _REOPEN_WAIT_S)
        try:
            if not idle:
                raise NvmlUnavailable("a call does not come back from the driver", 10)
            with contextlib.suppress(Exception):
                _library().nvmlShutdown()
            _initialise()
            self._opening += 1
        finally:
            with self._changed:
                self._renewing = False
                self._changed.notify_all()


def _library() -> Any:
    import pynvml  # noqa: PLC0415 - a third of a service's start-up, and of no use without a GPU

    return pynvml


def _initialise() -> None:
    pynvml = _library()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NvmlUnavailable(f"NVML cannot be used: {error}", error.value) from None
