"""What people call a GPU: its kind and index, ``T4 #0``, rather than its UUID."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from muxflow.client import Client
    from muxflow.contracts import Gpu

_UUID: Final = re.compile(r"(?:GPU )?(GPU-[0-9a-f]{4})[0-9a-f]{4}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def name(gpu: Gpu) -> str:
    """Call it by what it is and where it sits in its node."""
    return f"{gpu.kind} #{gpu.index}"


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
