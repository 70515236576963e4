"""Plots as inline SVG: lines, bars, points, lanes. Nothing of them is loaded from anywhere.

Each is drawn 400 units wide and shown at about that width, on a phone and beside others on a desk: its text stays
readable. Colours are classes, which the page has for light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final
from xml.etree.ElementTree import Element

import msgspec

from muxflow_run.elements import Child, element

WIDTH: Final = 400
HEIGHT: Final = 200
LEFT, RIGHT, TOP, BOTTOM = 40, 14, 8, 24
_ROW: Final = 30
_TICKS: Final = 5
COUNTED: Final = frozenset({"requests", "jobs", "count"})
"""Units of what there are no halves of."""


class Line(msgspec.Struct, frozen=True):
    """One line of a plot. A point without a value is a gap."""

    name: str
    colour: str
    points: tuple[tuple[float, float | None], ...]


class Bar(msgspec.Struct, frozen=True):
    """One bar of a group, with its interval where it has one."""

    name: str
    colour: str
    value: float | None
    low: float | None = None
    high: float | None = None


class Dot(msgspec.Struct, frozen=True):
    """One point of a plot of two measures."""

    colour: str
    x: float
    y: float
    words: str
    low: float | None = None
    high: float | None = None
    """Interval of x."""


class Span(msgspec.Struct, frozen=True):
    """Something that lasts, in a lane."""

    start: float
    end: float
    colour: str
    words: str


class Mark(msgspec.Struct, frozen=True):
    """Something that happens at one moment, in a lane."""

    at: float
    colour: str
    words: str


class Lane(msgspec.Struct, frozen=True):
    """One row of a plot of what is where and when."""

    name: str
    spans: tuple[Span, ...]
    marks: tuple[Mark, ...] = ()


def lines(title: str, unit: str, drawn: Sequence[Line], *, seconds: float, top: float | None = None) -> Element:
    """Draw values over the seconds of a window. `top` fixes the upper end of the scale."""
    values = [value for line in drawn for _, value in line.points if value is not None]
    least_step = 1.0 if unit in COUNTED else 0.0
    scale = _Scale.up_to(top if top is not None else max(values, default=1.0), least_step=least_step)
    frame = _frame(scale)
    frame += _seconds(0.0, seconds)
    for line in drawn:
        path = _path((_x(at, 0.0, seconds), scale.y(value) if value is not None else None) for at, value in line.points)
        frame.append(element("path", element("title", line.name), d=path, class_=f"line {line.colour}"))
    return _figure(title, unit, frame, HEIGHT, [(line.name, line.colour) for line in drawn], empty=not values)


def bars(title: str, unit: str, groups: Sequence[tuple[str, Sequence[Bar]]], *, bound: float | None = None) -> Element:
    """Draw groups of bars. `bound` is a line that they are held against."""
    every = [bar for _, group in groups for bar in group]
    ends = [end for bar in every for end in (bar.value, bar.high) if end is not None]
    scale = _Scale.up_to(max([*ends, bound or 0.0], default=1.0), least_step=1.0 if unit in COUNTED else 0.0)
    frame = _frame(scale)
    room = (WIDTH - LEFT - RIGHT) / max(1, len(groups))
    for number, (name, group) in enumerate(groups):
        begin = LEFT + number * room
        wide = room * 0.8 / max(1, len(group))
        for place, bar in enumerate(group):
            frame += _bar(bar, begin + room * 0.1 + place * wide, wide * 0.86, scale)
        frame.append(element("text", name, x=begin + room / 2, y=HEIGHT - BOTTOM + 15, class_="middle"))
    if bound is not None:
        y = scale.y(bound)
        frame.append(
            element("path", element("title", f"{bound:g}"), d=f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}", class_="bound")
        )
    names = list(dict.fromkeys((bar.name, bar.colour) for bar in every))
    return _figure(title, unit, frame, HEIGHT, names, empty=not ends)


def _bar(bar: Bar, x: float, wide: float, scale: _Scale) -> list[Element]:
    if not bar.value:
        word = "–" if bar.value is None else "0"
        return [element("text", word, x=x + wide / 2, y=HEIGHT - BOTTOM - 4, class_="middle")]
    y = scale.y(bar.value)
    words = f"{bar.name}: {bar.value:g}"
    made = [
        element(
            "rect",
            element("title", words),
            x=x,
            y=y,
            width=wide,
            height=max(0.5, HEIGHT - BOTTOM - y),
            class_=f"fill {bar.colour}",
        )
    ]
    if bar.low is not None and bar.high is not None:
        middle = x + wide / 2
        made.append(
            element("path", d=f"M{middle:.1f} {scale.y(bar.low):.1f}V{scale.y(bar.high):.1f}", class_="whisker")
        )
    return made


def points(title: str, unit: str, dots: Sequence[Dot], *, names: Sequence[tuple[str, str]] = ()) -> Element:
    """Draw points of two measures on the same scale, and the line on which both are equal."""
    scale = _Scale.up_to(max([1.0, *(max(dot.x, dot.y, dot.high or 0.0) for dot in dots)]))
    frame = _frame(scale)
    for tick in scale.ticks:
        x = _x(tick, 0.0, scale.top)
        frame.append(element("text", f"{tick:g}", x=x, y=HEIGHT - BOTTOM + 15, class_="middle"))
    frame.append(
        element("path", d=f"M{LEFT} {scale.y(0):.1f}L{WIDTH - RIGHT} {scale.y(scale.top):.1f}", class_="bound")
    )
    for dot in dots:
        x, y = _x(dot.x, 0.0, scale.top), scale.y(dot.y)
        if dot.low is not None and dot.high is not None:
            low, high = _x(dot.low, 0.0, scale.top), _x(dot.high, 0.0, scale.top)
            frame.append(element("path", d=f"M{low:.1f} {y:.1f}H{high:.1f}", class_="whisker"))
        frame.append(element("circle", element("title", dot.words), cx=x, cy=y, r=4.0, class_=f"fill {dot.colour}"))
    return _figure(title, unit, frame, HEIGHT, names, empty=not dots)


def lanes(
    title: str, drawn: Sequence[Lane], *, start: float, end: float, names: Sequence[tuple[str, str]] = ()
) -> Element:
    """Draw what was where and when; the begin of the window is marked."""
    height = TOP + _ROW * len(drawn) + BOTTOM
    frame = []
    for number, lane in enumerate(drawn):
        y = TOP + number * _ROW
        frame.append(element("text", lane.name, x=2, y=y + _ROW * 0.62))
        frame.append(element("path", d=f"M{LEFT + 16} {y + _ROW - 1}H{WIDTH - RIGHT}", class_="grid"))
        frame += [_span(span, y, start, end) for span in lane.spans]
        frame += [_mark(mark, y, start, end) for mark in lane.marks]
    if start < 0 < end:
        x = _x(0.0, start, end, LEFT + 16)
        frame.append(element("path", d=f"M{x:.1f} {TOP}V{height - BOTTOM}", class_="bound"))
    frame += _seconds(start, end, left=LEFT + 16, bottom=height - BOTTOM)
    return _figure(title, "", frame, height, names, empty=not any(lane.spans for lane in drawn))


def _span(span: Span, y: float, start: float, end: float) -> Element:
    x, until = (_x(min(max(at, start), end), start, end, LEFT + 16) for at in (span.start, span.end))
    return element(
        "rect",
        element("title", span.words),
        x=x,
        y=y + 5,
        width=max(1.0, until - x - 0.7),
        height=_ROW - 12,
        class_=f"fill {span.colour}",
    )


def _mark(mark: Mark, y: float, start: float, end: float) -> Element:
    x = _x(min(max(mark.at, start), end), start, end, LEFT + 16)
    path = f"M{x:.1f} {y + 1}l4 6h-8zM{x:.1f} {y + 1}v{_ROW - 4}"
    return element("path", element("title", mark.words), d=path, class_=f"mark {mark.colour}")


class _Scale(msgspec.Struct, frozen=True):
    """The upright axis, from 0."""

    top: float
    ticks: tuple[float, ...]

    @classmethod
    def up_to(cls, most: float, *, least_step: float = 0.0) -> _Scale:
        """Find round numbers that hold this value."""
        most = most if most >= 1e-6 else 1.0  # what is smaller is nothing
        raw = max(most / _TICKS, least_step)
        size = 10 ** math.floor(math.log10(raw))
        step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= raw * 0.999)
        count = math.ceil(most / step - 1e-9)
        return cls(count * step, tuple(round(step * number, 10) for number in range(count + 1)))

    def y(self, value: float) -> float:
        """Where a value is."""
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(value, self.top) / self.top)


def _x(at: float, start: float, end: float, left: float = LEFT) -> float:
    return left + (WIDTH - RIGHT - left) * (at - start) / (end - start)


def _frame(scale: _Scale) -> list[Element]:
    made = []
    for tick in scale.ticks:
        y = scale.y(tick)
        made.append(element("path", d=f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}", class_="axis" if tick == 0 else "grid"))
        made.append(element("text", f"{tick:g}", x=LEFT - 5, y=y + 4, class_="end"))
    return made


def _seconds(start: float, end: float, *, left: float = LEFT, bottom: float = HEIGHT - BOTTOM) -> list[Element]:
    step = next(step for step in (1, 2, 5, 10, 20, 60, 120, 300, 600) if (end - start) / step <= 9)
    first = math.ceil(start / step) * step
    ticks = range(int(first), int(end) + 1, step)
    return [
        element(
            "text",
            f"{at:g}{' s' if at == ticks[-1] else ''}",
            x=_x(at, start, end, left),
            y=bottom + 15,
            class_="middle",
        )
        for at in ticks
    ]


def _path(found: Iterable[tuple[float, float | None]]) -> str:
    words, pen_down = [], False
    for x, y in found:
        if y is None:
            pen_down = False
            continue
        words.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        pen_down = True
    return "".join(words)


def _figure(
    title: str, unit: str, frame: Sequence[Element], height: float, names: Sequence[tuple[str, str]], *, empty: bool
) -> Element:
    """Put a plot under its title, and its legend under it."""
    legend: list[Child] = [element("span", element("i", class_=f"swatch {colour}"), name) for name, colour in names]
    label = f"{title}, {unit}" if unit else title
    drawn: Child = (
        element("p", "nothing to show", class_="empty")
        if empty
        else element("svg", *frame, viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=label)
    )
    return element(
        "figure",
        element("figcaption", title, element("small", f" {unit}") if unit else None),
        drawn,
        element("div", *legend, class_="legend") if legend else None,
    )
