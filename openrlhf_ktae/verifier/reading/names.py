"""Is a side of a relation only a name, and do two names mean different things?"""

from .lexer import Token
from .notation import ACCENTS, SYMBOLS
from .values import Name, Scalar, Text, Value
from .words import FILLERS

MAX_TOKENS = 40
_OPERATORS = frozenset({"_", "{", "}", "(", ")", "'", "|", ",", "*", "[", "]", "\\{", "\\}"})
_COMMANDS = SYMBOLS | ACCENTS | {"bold"}
_DECORATION = ACCENTS | {"bold", "angle", "triangle", "square"}  # `m\\angle A` and A, `\\overline{AB}` and AB


def read_name(tokens: list[Token], value: Value) -> Name | None:
    """The side as a name, such as `x`, `S_{ABC}`, `f(x)`, `|AB|`, `(x, y)`, `Area`; None if it is an expression."""
    if any(text.lower() in ("not", "no", "never", "nor", "without") for _, text in tokens):
        return None
    if isinstance(value, Text):
        return Name(value.phrase, words=True)
    if isinstance(value, Scalar) and value.unit is None and value.node[0] in ("sym", "app"):
        stem, slash, variable = value.node[1].partition("/")
        base, _, label = stem.rstrip("'").partition("_")
        label = label.replace("triangle", "").replace("angle", "")
        if base in ACCENTS:  # `\\overline{AB}`
            base, label = label, ""
        derivative = "'" * stem.count("'") + slash + variable
        return Name(base + derivative, label, value.node[2:] if value.node[0] == "app" else ())
    if not tokens or len(tokens) > MAX_TOKENS or _is_product(tokens):
        return None
    letters: list[str] = []
    label, words, depth, in_subscript = "", False, 0, False
    for kind, text in tokens:
        if (kind == "num" and not in_subscript) or (kind == "op" and text not in _OPERATORS):
            return None
        if kind == "cmd" and text not in _COMMANDS:
            return None
        if kind == "op":
            depth += (text == "{") - (text == "}")
            in_subscript = (in_subscript and depth > 0) or text == "_"
            continue
        if in_subscript:
            label, in_subscript = label + text, depth > 0
        elif text not in _DECORATION:
            letters.append(text)
            words = words or kind == "word"
    tuple_of_names = tokens[0] == ("op", "(") and ("op", ",") in tokens
    if len(letters) > 1 and letters[0] == "m" and ("cmd", "angle") in tokens:
        letters = letters[1:]
    base = ",".join(letters) if tuple_of_names else " ".join(letters) if words else "".join(letters)
    return Name(base, label, words=words) if base else None


def _is_product(tokens: list[Token]) -> bool:
    """`xy` is a product, `AB` a segment."""
    inner = [(kind, text) for kind, text in tokens if text not in ("{", "}")]
    letters = [text for kind, text in inner if kind == "sym"]
    return len(inner) > 1 and len(letters) == len(inner) and not all(letter.isupper() for letter in letters)


def conflict(gold: Name, answer: Name) -> bool:
    """`x` and `y`, `MR` and `P`, Alice and Bob, `x_1` and `x_2` name different things.

    `N` and `n`, `Area` and `A`, `S` and `S_{ABC}`, `y` and `f(x)` may name the same.
    """
    if gold.label and answer.label and gold.label != answer.label:
        return True
    if [a[0] for a in gold.arguments] != [a[0] for a in answer.arguments] and gold.arguments and answer.arguments:
        return True
    for told, given in zip(gold.arguments, answer.arguments, strict=False):
        if told != given and (told[0] != "sym" or told[1].isupper() or given[1].isupper()):
            return True  # f(3) and f(4), P(A) and P(B); a small letter is a bound name
    g, a = gold.base, answer.base
    if not ("/" in g and "/" in a):  # a derivative without its variable
        g, a = g.split("/")[0], a.split("/")[0]
    if g == a or (len(g) == len(a) == 1 and g.lower() == a.lower() and not (gold.arguments and answer.arguments)):
        return False
    if gold.words or answer.words:
        if gold.words and answer.words:
            return g.split()[-1:] != a.split()[-1:]
        word, letter = (g, a) if gold.words else (a, g)
        return not (word[:1] == letter[:1].lower() or set(word.split()) <= FILLERS)
    if len(g) == len(a) == 2 and g.isupper():
        return g != a[::-1]
    return not ("y" in (g, a) and bool(gold.arguments) != bool(answer.arguments))


def argument_renames(gold: Name, answer: Name) -> dict[str, str]:
    """`f(z) = z` is `f(x) = x`: the answer's arguments under the gold's names."""
    pairs = {a[1]: g[1] for g, a in zip(gold.arguments, answer.arguments, strict=False) if g[0] == a[0] == "sym"}
    return {a: g for a, g in pairs.items() if a != g} if len(set(pairs.values())) == len(pairs) else {}
