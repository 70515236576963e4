"""``device``: what an operator does to one GPU, and what a program needs in order to be served on it."""

from __future__ import annotations

import asyncio
import shlex
from typing import TYPE_CHECKING, Annotated, Final

import typer

from muxflow.cli import gpus, output
from muxflow.cli.command import CommandError, Session, command
from muxflow.cli.gpus import DeviceArgument

if TYPE_CHECKING:
    from muxflow.client import Client
    from muxflow.contracts import DeviceSummary

_OBEYED_S: Final = 5.0
_LOOK_S: Final = 0.1

BeaconOption = Annotated[bool, typer.Option("--beacon/--no-beacon", help="Let offline work see each launch at once.")]
ReasonOption = Annotated[str, typer.Option(help="Why, for the record.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    group = typer.Typer(
        name="device", help="Act on one GPU, or serve on it.", no_args_is_help=True, rich_markup_mode="markdown"
    )
    command(group, "muxflow device disable gpu-7/2 --reason 'fan is loud'")(disable)
    command(group, "muxflow device enable gpu-7/2")(enable)
    command(group, "muxflow device env 0", 'eval "$(muxflow device env 0)"; python serve.py', name="env")(environment)
    app.add_typer(group)


async def disable(session: Session, *, device: DeviceArgument, reason: ReasonOption = "") -> None:
    """Keep offline work off a GPU until it is enabled again; what runs there is evicted, back to the queue.

    Returns when the GPU's monitor has obeyed. The wish stands, whatever is restarted.
    """
    async with session.connect() as client:
        found = await _watched(client, device)
        await client.disable(found.node, found.gpu.uuid, reason=reason)
        after = await _obeyed(client, found, disabled=True)
    if session.as_json:
        output.json(after)
        return
    output.line(f"{gpus.place(after)}: {after.cause or 'disabled'}")
    if found.job is not None:
        output.line(f"{found.tenant}/{found.job}#{found.attempt} is stopped there and goes back to the queue")


async def enable(session: Session, *, device: DeviceArgument, reason: ReasonOption = "") -> None:
    """Let offline work use a GPU again, as soon as its readings allow it."""
    async with session.connect() as client:
        found = await _watched(client, device)
        await client.enable(found.node, found.gpu.uuid, reason=reason)
        after = await _obeyed(client, found, disabled=False)
    if session.as_json:
        output.json(after)
    else:
        output.line(f"{gpus.place(after)} is enabled, and {after.state.value if after.state else 'not told of yet'}")


async def _watched(client: Client, words: str) -> DeviceSummary:
    """Find the GPU that is meant, and make sure that there is somebody to obey."""
    found = gpus.meant(words, await client.devices())
    if not found.watched:
        raise CommandError(f"{gpus.place(found)} is only declared: no monitor watches it, so nobody would obey")
    return found


async def _obeyed(client: Client, wished: DeviceSummary, *, disabled: bool) -> DeviceSummary:
    """Wait until the device's monitor has told that it obeys, and give what it told."""
    from muxflow.contracts import DeviceCondition

    try:
        async with asyncio.timeout(_OBEYED_S):
            while True:
                now = gpus.meant(wished.gpu.uuid, await client.devices())
                if (now.state is DeviceCondition.DISABLED) == disabled:
                    return now
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        raise CommandError(
            f"the wish is stored, and the monitor of {wished.node} has not obeyed within {_OBEYED_S:g} s: "
            "it will when it is back"
        ) from None


async def environment(session: Session, *, device: DeviceArgument, beacon: BeaconOption = True) -> None:
    """Print what a program needs in its environment to be served on a GPU of this machine, beside offline work.

    It makes the program a client of that GPU's MPS server, and has a library count its launches, so that offline jobs
    launch nothing beside them; --no-beacon leaves that out. Made for a shell: eval "$(muxflow device env 0)". Only for
    machines that `muxflow up` runs; elsewhere the run directory of the node's monitor has a folder `mps` for each GPU.
    """
    from muxflow.discovery import environment_on

    async with session.connect() as client:
        found = gpus.meant(device, await client.devices())
    variables = environment_on(found.gpu.uuid, directory=session.state_dir, beacon=beacon)
    if session.as_json:
        output.json(variables)
        return
    for name, value in variables.items():
        output.line(f"export {name}={shlex.quote(value)}")
