"""The one way to make a command: connection options, ``--json``, one-line errors, exit codes.

A command is a coroutine function whose first parameter is a `Session`. It appears with its own options, and with those
that every command has.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, get_type_hints

import typer

if TYPE_CHECKING:
    from muxflow.client import Client

OK: Final = 0
FAILURE: Final = 1
USAGE: Final = 2
NOT_CONNECTED: Final = 3
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141

_CODES: Final = {"JobFileError": USAGE, "NotConnected": NOT_CONNECTED}
"""By name: importing them would cost every command a tenth of a second."""

TRACEBACK_VARIABLE: Final = "MUXFLOW_TRACEBACK"
"""Set to anything, an unexpected error shows its traceback."""

_PANEL: Final = "Connection"

JsonOption = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print JSON instead of tables, times in nanoseconds: lists are one document, "
        "streams (events, alerts, logs, up) one object per line.",
    ),
]
TenantOption = Annotated[
    str | None, typer.Option(help="Act in this tenant. Default: all where that makes sense, else 'default'.")
]
ServerOption = Annotated[
    str | None, typer.Option(help="NATS server, such as nats://10.0.0.5:4222.", rich_help_panel=_PANEL)
]
CredentialsOption = Annotated[
    Path | None, typer.Option(help="File with the NKey seed of your credentials.", rich_help_panel=_PANEL)
]
StateDirOption = Annotated[
    Path | None,
    typer.Option(
        help="State directory of a running `muxflow up`.",
        show_default="$MUXFLOW_STATE_DIR, else ~/.local/state/muxflow",
        rich_help_panel=_PANEL,
    ),
]

_COMMON: Final[dict[str, tuple[Any, Any]]] = {
    "as_json": (JsonOption, False),
    "tenant": (TenantOption, None),
    "server": (ServerOption, None),
    "credentials": (CredentialsOption, None),
    "state_dir": (StateDirOption, None),
}


class CommandError(Exception):
    """Ends a command with one line on standard error and an exit code."""

    def __init__(self, message: str, code: int = FAILURE) -> None:
        super().__init__(message)
        self.code = code


class Session:
    """What a command gets: how to connect, and how to print."""

    def __init__(
        self,
        *,
        as_json: bool,
        tenant: str | None,
        server: str | None,
        credentials: Path | None,
        state_dir: Path | None,
    ) -> None:
        self.as_json = as_json
        self.tenant = tenant
        self._server = server
        self._credentials = credentials
        self.state_dir = state_dir

    def connect(self) -> Client:
        """Make the client to enter with ``async with``."""
        from muxflow import logs
        from muxflow.client import Client
        from muxflow.settings import LogSettings

        logs.configure(LogSettings(level="error", format="console"), service="cli")
        return Client.connect(
            server=self._server, credentials=self._credentials, state_dir=self.state_dir, tenant=self.tenant
        )


Work = TypeVar("Work", bound=Callable[..., Coroutine[Any, Any, None]])


def command(app: typer.Typer, *examples: str, name: str | None = None) -> Callable[[Work], Work]:
    """Register a coroutine function as a command; `examples` stand below its help."""

    def register(work: Work) -> Work:
        hints = get_type_hints(work, include_extras=True)
        own = [
            parameter.replace(annotation=hints[parameter.name])
            for parameter in list(inspect.signature(work).parameters.values())[1:]
        ]
        common = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for key, (annotation, default) in _COMMON.items()
        ]
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]

        def run(**arguments: Any) -> None:
            session = Session(**{key: arguments.pop(key) for key in _COMMON})
            end_with(lambda: asyncio.run(work(session, **arguments)))

        run.__doc__ = work.__doc__
        run.__signature__ = inspect.Signature([*own, *common])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *common]}
        app.command(name or work.__name__, epilog=epilog(*examples))(run)
        return work

    return register


def epilog(*examples: str) -> str:
    """Make the examples below a command's help."""
    return "\n\n".join(f"Example: {example}" for example in examples)


def end_with(work: Callable[[], None]) -> None:
    """Run a command to its end; every way to fail becomes a line on standard error and an exit code."""
    try:
        work()
        sys.stdout.flush()
    except CommandError as error:
        _fail(str(error), error.code)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(PIPE_CLOSED) from None
    except typer.Exit:
        raise
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        _fail(_one_line(error), _CODES.get(type(error).__name__, FAILURE))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if type(error).__module__.startswith("muxflow."):
        return text  # our own errors are written for people
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else text
    return f"unexpected {type(error).__name__}: {text} (set {TRACEBACK_VARIABLE}=1 to see where)"


def _fail(message: str, code: int) -> None:
    print(f"muxflow: {message}", file=sys.stderr)
    raise typer.Exit(code) from None
