"""One call of NVML about one GPU, asked for as long as it makes sense."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog

from muxflow_device.nvml import Trouble, meaning

log = structlog.get_logger()


class Question:
    """One thing that is asked of one GPU, until NVML says that it is never given."""

    def __init__(self, name: str, ask: Callable[[], Any], failing: set[str]) -> None:
        """`failing` holds the names of those that NVML should answer, and did not the last time."""
        self.name = name
        self.supported: bool | None = None
        """Null until it was asked."""
        self._ask = ask
        self._failing = failing

    def ask(self, error_type: type[Exception], nothing: Any = None) -> Any:
        """Give the answer, `nothing` where there is none now, null where there is none ever or this time.

        Raises what says that the GPU is away.
        """
        if self.supported is False:
            return None
        try:
            answer = self._ask()
        except error_type as error:
            return self._without(error, nothing)
        self.supported = True
        if self._failing and self.name in self._failing:
            self._failing.discard(self.name)
            log.info("NVML answers again", call=self.name)
        return answer

    def _without(self, error: Any, nothing: Any) -> Any:
        match meaning(error.value):
            case Trouble.NOTHING:
                self.supported = True
                return nothing
            case Trouble.UNSUPPORTED:
                self.supported = False
                return None
            case Trouble.FAILED:
                self._failing.add(self.name)
                return None
            case _:
                raise error
