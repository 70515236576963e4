"""What people call a GPU: its kind and index, ``T4 #0``, rather than its UUID; and which one they mean."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from muxflow.cli.command import CommandError

if TYPE_CHECKING:
    from muxflow.client import Client
    from muxflow.contracts import DeviceSummary, Gpu

_UUID: Final = re.compile(r"(?:GPU )?(GPU-[0-9a-f]{4})[0-9a-f]{4}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAMED: Final = 12
"""GPUs that a message lists before it goes on with a number."""

DeviceArgument = Annotated[
    str,
    typer.Argument(
        metavar="DEVICE",
        help="Which GPU: its UUID or the begin of it, its index, 'T4 #0', or NODE/ and one of these.",
    ),
]


def name(gpu: Gpu) -> str:
    """Call it by what it is and where it sits in its node."""
    return f"{gpu.kind} #{gpu.index}"


def place(device: DeviceSummary) -> str:
    """Say which GPU of which node."""
    return f"{name(device.gpu)} of {device.node}"


async def names(client: Client) -> dict[str, str]:
    """Give every GPU's name by UUID; none for those who may not look at nodes."""
    from muxflow.client import NoAnswer, NotAllowed

    try:
        nodes = await client.nodes()
    except (NoAnswer, NotAllowed):
        return {}
    return {each.gpu.uuid: name(each.gpu) for node in nodes for each in node.gpus}


def told(text: str, known: Mapping[str, str]) -> str:
    """Put names in the place of UUIDs; a UUID that is not known is shortened."""

    def name_of(match: re.Match[str]) -> str:
        return known.get(match[0].removeprefix("GPU "), f"{match[1]}…")

    return _UUID.sub(name_of, text)


def meant(words: str, devices: Sequence[DeviceSummary]) -> DeviceSummary:
    """Find the one GPU that is meant. `CommandError` lists what there is when it is none, or more than one.

    A whole UUID or name goes before one that merely begins so; a node's name may contain slashes itself.
    """
    found = candidates(words, devices)
    if len(found) == 1:
        return found[0]
    if found:
        raise CommandError(f"{words!r} may be any of {_listed(found)}")
    if not devices:
        raise CommandError("there are no GPUs")
    are = "is" if len(devices) == 1 else "are"
    raise CommandError(f"there is no GPU {words!r}; there {are} {_listed(devices)}")


def candidates(words: str, devices: Sequence[DeviceSummary]) -> list[DeviceSummary]:
    """Find every GPU that may be meant."""
    return [device for device in devices if _is(words, device)] or [
        device for device in devices if _begins(words, device)
    ]


def _is(words: str, device: DeviceSummary) -> bool:
    gpu = device.gpu
    own = (gpu.uuid, str(gpu.index), f"{gpu.kind}{gpu.index}")
    return _plain(words) in {_plain(each) for one in own for each in (one, f"{device.node}/{one}")}


def _begins(words: str, device: DeviceSummary) -> bool:
    begin = words.removeprefix(f"{device.node}/")
    return begin.startswith("GPU-") and device.gpu.uuid.startswith(begin)


def _plain(words: str) -> str:
    """Without what people leave out or write differently: spaces, the sign before an index, capitals."""
    return words.replace(" ", "").replace("#", "").lower()


def _listed(devices: Sequence[DeviceSummary]) -> str:
    """List GPUs as they may be written; with their node where there are several."""
    nodes = {device.node for device in devices}
    if len(nodes) == 1:
        told = ", ".join(name(device.gpu) for device in devices[:_NAMED])
    else:
        told = ", ".join(f"{device.node}/{device.gpu.index} ({device.gpu.kind})" for device in devices[:_NAMED])
    more = f" and {len(devices) - _NAMED} more" if len(devices) > _NAMED else ""
    return told + more + (f" of {nodes.pop()}" if len(nodes) == 1 else "")
