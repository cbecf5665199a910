"""Walking over and rewriting expressions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .values import Node


def walk(node: Node) -> Iterator[Node]:
    """All nodes of an expression."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        if current[0] == "app":
            continue
        stack.extend(part for part in current[1:] if isinstance(part, tuple) and part and isinstance(part[0], str))


def replaced(node: Node, change: Callable[[Node], Node | None]) -> Node:
    """The expression with `change` applied to every node, from the leaves up; None leaves a node as it is."""
    if node[0] != "app":
        node = tuple(
            replaced(part, change) if isinstance(part, tuple) and part and isinstance(part[0], str) else part
            for part in node
        )
    new = change(node)
    return node if new is None else new


def common_logarithms(node: Node) -> Node:
    """The expression with every `log` without a base read as the logarithm to base ten."""
    return replaced(node, lambda part: ("fn", "lg", part[2]) if part[:2] == ("fn", "log") else None)


def free_symbols(node: Node, drop_arguments: bool = False) -> frozenset[str]:
    """Names of the variables."""
    names: set[str] = set()
    bound: set[str] = set()
    for current in walk(node):
        if current[0] == "sym":
            names.add(current[1])
        elif current[0] == "app":
            names.update(_application_symbols(current, drop_arguments))
        elif current[0] in ("sum", "prod"):
            bound.add(current[1])
    return frozenset(names - bound)


def _application_symbols(node: Node, drop_arguments: bool) -> set[str]:
    function, arguments = node[1][1], node[2]
    if drop_arguments:
        return {function if not arguments[0].isdigit() else f"{function}_{arguments[0]}"}
    return {function, *(name for name in arguments if not name[0].isdigit() and name not in ("e", "i"))}
