"""HTML as elements, so that every text is escaped and every tag is closed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element, tostring

Child = Element | str | None


def element(tag: str, *children: Child, **attributes: object) -> Element:
    """Make one element. Attributes: ``class_`` is ``class``, ``stroke_width`` is ``stroke-width``; None leaves out."""
    made = Element(
        tag,
        {name.rstrip("_").replace("_", "-"): _text(value) for name, value in attributes.items() if value is not None},
    )
    add(made, children)
    return made


def add(parent: Element, children: Iterable[Child]) -> None:
    """Add elements and texts to an element; None adds nothing."""
    for child in children:
        if isinstance(child, Element):
            parent.append(child)
        elif child is not None and len(parent):
            parent[-1].tail = (parent[-1].tail or "") + child
        elif child is not None:
            parent.text = (parent.text or "") + child


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Element:
    """Make a table whose first column are names, and whose others are figures; it scrolls where it is too wide."""
    return element(
        "div",
        element(
            "table",
            element("thead", element("tr", *(element("th", name, scope="col") for name in head))),
            element(
                "tbody",
                *(
                    element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:]))
                    for row in rows
                ),
            ),
        ),
        class_="table",
    )


def written(root: Element) -> str:
    """Write it as HTML."""
    return tostring(root, encoding="unicode", method="html")


def _text(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
