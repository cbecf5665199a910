"""Walking over and rewriting expressions."""

from collections.abc import Callable, Iterator, Mapping

from .values import Node


def walk(node: Node) -> Iterator[Node]:
    """All nodes of an expression."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        for part in current:
            if type(part) is tuple:
                stack.append(part)


def replaced(node: Node, change: Callable[[Node], Node | None]) -> Node:
    """The expression with `change` applied to every node, from the leaves up; None leaves a node as it is."""
    node = tuple(replaced(part, change) if isinstance(part, tuple) else part for part in node)
    new = change(node)
    return node if new is None else new


def renamed(node: Node, names: Mapping[str, str]) -> Node:
    """The expression with symbols renamed; a symbol that already has one of the new names gets a third name."""
    if not names:
        return node
    taken = set(names.values()) - set(names)

    def change(part: Node) -> Node | None:
        if part[0] in ("sym", "app", "sum", "prod"):
            name = names.get(part[1], f"{part[1]}#" if part[1] in taken else part[1])
            return (part[0], name, *part[2:])
        return None

    return replaced(node, change)


def common_logarithms(node: Node) -> Node:
    """The expression with every `log` without a base read as the logarithm to base ten."""
    return replaced(node, lambda part: ("fn", "lg", part[2]) if part[:2] == ("fn", "log") else None)


def free_symbols(node: Node) -> frozenset[str]:
    """Names of the variables."""
    names: set[str] = set()
    bound: set[str] = set()
    for current in walk(node):
        if current[0] == "sym":
            names.add(current[1])
        elif current[0] in ("sum", "prod"):
            bound.add(current[1])
    return frozenset(names - bound)


def spelled(node: Node) -> str:
    """The letters of a product of letters, joined; empty for other expressions."""
    if node[0] == "mul":
        parts = [spelled(part) for part in node[1:]]
        return "".join(parts) if all(parts) else ""
    return str(node[1]) if node[0] in ("sym", "const") else ""
