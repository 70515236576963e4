"""Docstrings of fields and enum members: string literals that follow them in the source."""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache


def member_docstrings(kind: type) -> dict[str, str]:
    """Give the docstring of each documented member of a class, inherited members included."""
    docstrings: dict[str, str] = {}
    for ancestor in reversed(kind.__mro__):
        docstrings |= _written_in(ancestor.__module__).get(ancestor.__qualname__, {})
    return docstrings


@cache
def _written_in(module: str) -> dict[str, dict[str, str]]:
    """Read a module's source: class → member → docstring. Only our own modules are read."""
    if not module.startswith("muxflow"):
        return {}
    classes = (
        node for node in ast.parse(inspect.getsource(sys.modules[module])).body if isinstance(node, ast.ClassDef)
    )
    return {node.name: dict(_members(node)) for node in classes}


def _members(node: ast.ClassDef) -> list[tuple[str, str]]:
    members = []
    for statement, following in zip(node.body, node.body[1:], strict=False):
        match statement, following:
            case (
                ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                members.append((name, inspect.cleandoc(text).replace("``", "`")))
    return members
