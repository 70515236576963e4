"""One frame of `top`: lines of text of a given width and height. A function of the board, nothing else."""

from __future__ import annotations

import textwrap
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from rich.text import Text

from muxflow.cli import gpus, readings
from muxflow.cli.ages import age
from muxflow.cli.alerts import in_words
from muxflow.cli.output import style_of
from muxflow.contracts import DeviceCondition, DeviceSummary

if TYPE_CHECKING:
    from muxflow.cli.top.board import Board, Recent

_ORDER: Final = ("overlimit", "lost", "unknown", "unhealthy", "init", "disabled", "healthy", "unwatched")
"""Worst first: what a small screen shows of many GPUs."""
_HEADER: Final = ("GPU", "STATE", "ONLINE", "", "OFFLINE", "", "BUDGET", "BUSY", "MEMORY")
_RIGHT: Final = frozenset({3, 5, 6, 7, 8})
_FLEXIBLE: Final = (0, 2, 4)
_NARROW: Final = 8
"""Flexible columns are not made narrower than this: names stay recognisable."""
_INDENT: Final = " " * 12
_GIB: Final = 2**30


def lines(board: Board, *, width: int, height: int | None, now_ns: int) -> list[Text]:
    """Draw a frame. `height` None shows everything."""
    devices = sorted(board.devices.values(), key=lambda device: (device.node, device.gpu.index, device.gpu.uuid))
    name = _namer(devices)
    head = _head(board, devices, now_ns)
    told = [
        *_section("WHY", _why(devices, name, now_ns), width),
        *_section("LATELY", _lately(board, devices, name, now_ns), width),
    ]
    room = None
    if height is not None:
        room = max(0, height - len(head) - min(len(told), height // 3))
    shown = _chosen(devices, room)
    body = _table(shown, width, name)
    if len(shown) < len(devices):
        body.append(Text(f"… and {_count(len(devices) - len(shown), 'more GPU')}", style="bright_black"))
    frame = [*head, *body, *told]
    for line in frame:
        line.truncate(width, overflow="ellipsis")
    return frame if height is None else frame[:height]


Namer = Callable[[DeviceSummary], str]


def _namer(devices: Sequence[DeviceSummary]) -> Namer:
    """Name GPUs as shortly as they can be told apart."""
    if len({device.node for device in devices}) > 1:
        return lambda device: f"{device.node}/{device.gpu.index} {device.gpu.kind}"
    return lambda device: gpus.name(device.gpu)


def _head(board: Board, devices: Sequence[DeviceSummary], now_ns: int) -> list[Text]:
    """Say how much there is of everything, and what is wrong with what is shown."""
    nodes = sorted({device.node for device in devices})
    where = nodes[0] if len(nodes) == 1 else _count(len(nodes), "node")
    clock = time.strftime("%H:%M:%S", time.localtime(now_ns / 1e9))
    head = Text.assemble(("MuxFlow", "bold"), f" {clock}  {_count(len(devices), 'GPU')} on {where}")
    if board.running is not None and board.waiting is not None:
        head.append(f", {_count(board.running, 'job')} there, {board.waiting} waiting")
    if board.trouble:
        return [head, Text(board.trouble, style="red")]
    counts = Counter(readings.state(device) for device in devices)
    states = Text()
    for state in _ORDER:
        if counts[state]:
            states.append(f"{counts[state]} {state}  ", style=style_of(state))
    return [head, states]


def _chosen(devices: Sequence[DeviceSummary], room: int | None) -> list[DeviceSummary]:
    """Leave out GPUs for which there is no room, the most harmless ones, and keep the order."""
    if room is None or len(devices) < room:
        return list(devices)
    ranked = sorted(devices, key=lambda device: (_ORDER.index(readings.state(device)), device.job is None))
    kept = {(device.node, device.gpu.uuid) for device in ranked[: max(0, room - 2)]}
    return [device for device in devices if (device.node, device.gpu.uuid) in kept]


def _table(devices: Sequence[DeviceSummary], width: int, name: Namer) -> list[Text]:
    rows = [_row(device, name) for device in devices]
    widths = _widths([list(_HEADER), *rows], width)
    drawn = [_cells(list(_HEADER), widths, style="bold")]
    for device, row in zip(devices, rows, strict=True):
        line = _cells(row, widths)
        begin = widths[0] + 1
        line.stylize(style_of(readings.state(device)), begin, begin + widths[1])
        drawn.append(line)
    return drawn


def _row(device: DeviceSummary, name: Namer) -> list[str]:
    sample = device.sample
    busy = None
    if sample is not None:
        busy = sample.utilization_pct if sample.sm_activity_pct is None else sample.sm_activity_pct
    return [
        name(device),
        readings.state(device),
        device.workload or readings.UNKNOWN,
        readings.percent(sample.online_activity_pct if sample else None),
        _job(device),
        readings.permille(sample.offline_busy_permille if sample else None),
        readings.budget(device),
        readings.percent(busy),
        _memory(device),
    ]


def _job(device: DeviceSummary) -> str:
    if device.job is None:
        return readings.UNKNOWN
    tenant = "" if device.tenant == "default" else f"{device.tenant}/"
    return f"{tenant}{device.job}#{device.attempt}"


def _memory(device: DeviceSummary) -> str:
    total = f"{device.gpu.memory_bytes / _GIB:.0f}G"
    used = device.sample.memory_used_bytes if device.sample else None
    return total if used is None else f"{used / _GIB:.1f}/{total}"


def _widths(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Give each column what it needs; where that is too much, the widest flexible one gives way first."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    while sum(widths) + len(widths) - 1 > width:
        widest = max(_FLEXIBLE, key=lambda column: widths[column])
        if widths[widest] <= _NARROW:
            break
        widths[widest] -= 1
    return widths


def _cells(row: Sequence[str], widths: Sequence[int], *, style: str = "") -> Text:
    cells = []
    for number, (cell, wide) in enumerate(zip(row, widths, strict=True)):
        fitting = _fitting(cell, wide, keep_end=number == 0)
        cells.append(fitting.rjust(wide) if number in _RIGHT else fitting.ljust(wide))
    return Text(" ".join(cells).rstrip(), style=style)


def _fitting(text: str, wide: int, *, keep_end: bool) -> str:
    """Cut a text; of a GPU's place the end says more than the begin."""
    if len(text) <= wide:
        return text
    return f"…{text[len(text) - wide + 1 :]}" if keep_end else f"{text[: wide - 1]}…"


class _Told(NamedTuple):
    """One thing that is told: a few coloured words, and the rest, which may take a second line."""

    begin: Text
    rest: str


def _section(title: str, told: Sequence[_Told], width: int) -> list[Text]:
    if not told:
        return []
    return [Text(title, style="bold"), *(line for each in told for line in _wrapped(each, width))]


def _wrapped(told: _Told, width: int) -> list[Text]:
    begin = len(told.begin.plain)
    if begin + len(told.rest) <= width or width - begin < _NARROW:
        return [told.begin + Text(told.rest)]
    first, *others = textwrap.wrap(told.rest, width, initial_indent=" " * begin, subsequent_indent=_INDENT)
    lines = [told.begin + Text(first[begin:])]
    if others:
        lines.append(Text(others[0] if len(others) == 1 else f"{others[0][: width - 1]}…"))
    return lines


def _why(devices: Sequence[DeviceSummary], name: Namer, now_ns: int) -> list[_Told]:
    """Say of every GPU that takes no new work how it came to be so, and of silent ones that they are."""
    told = []
    for device in devices:
        silent = readings.stale(device, now_ns)
        if not device.watched or (device.state is DeviceCondition.HEALTHY and device.alive and silent is None):
            continue
        state = readings.state(device)
        since = f" for {age(device.since_ns, now_ns)}" if device.since_ns and device.alive else ""
        why = silent or device.cause or "its monitor has told nothing yet"
        if not device.alive and device.closed:
            why = device.closed
        told.append(_Told(Text.assemble(f"{name(device)} ", (state, style_of(state))), f"{since}: {why}"))
    return told


def _lately(board: Board, devices: Sequence[DeviceSummary], name: Namer, now_ns: int) -> list[_Told]:
    known = {device.gpu.uuid: name(device) for device in devices}
    return [_happening(each, known, now_ns) for each in board.recent(now_ns)]


def _happening(recent: Recent, known: Mapping[str, str], now_ns: int) -> _Told:
    words = in_words(recent.alert, known)
    begin = Text.assemble(f"{age(recent.time_ns, now_ns):>6} ago  ", (words.who, "red" if words.grave else "yellow"))
    return _Told(begin, f" {words.what}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
