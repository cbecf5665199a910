r"""Cleaned text -> tokens. One regular expression, linear, with a cap on the number of tokens.

A token is (kind, value). Kinds: `num` (digits as written), `sym` (a variable or constant), `word` (text: a unit, a
connective, a name), `cmd` (a LaTeX command without its backslash) and `op` (a character or relation the parser knows).
"""

import re
from fractions import Fraction

from .words import BARE_UNITS, BARE_WORDS, FORMULA_UNITS, FUNCTION_NAMES, NUMBER_WORDS, UNITS, is_word

Token = tuple[str, str]
MAX_TOKENS = 4000


class ReadError(Exception):
    """The text is not in a notation that the parser understands."""


_TIMES_TEN = re.compile(r"(?<=\d)\s*[xX*]\s*10\s*\^")
_SPACED_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d ])")
_COMMA_GROUPS = re.compile(r"(?<![\d.])(?<!\d,)[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)")
_DECIMAL_COMMA = re.compile(r"(?<=\d)\{\s*,\s*\}(?=\d)")
_DEGREE = re.compile(
    r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|(?<=\d)\s*\^\s*(?:\{\s*)?(?:\\(?:text|mathrm)\{\s*)?o(?![a-zA-Z])\s*\}{0,2}|\\degree(?![a-zA-Z])|\\circ(?![a-zA-Z])"
)
_PRIMES = re.compile(r"\^\s*(?:\{\s*((?:\\prime\s*)+)\}|(\\prime)(?![a-zA-Z]))")
_ORDINAL = re.compile(
    r"(?<=\d)\s*(?:\^\s*)?(?:\{\s*)?(?:\\(?:text|mathrm|textrm|rm|textsuperscript)\s*\{\s*)?(?:st|nd|rd|th)(?![a-zA-Z])\s*\}{0,2}"
)
_BASE = re.compile(
    r"(?<=\w)\s*(?:\\text\s*\{)?\s*\(?\s*(?:in )?base[\s-]*\}?\s*(\d{1,2}|[a-z]{2,9})\s*\}?\s*\)?\s*\}?\s*$"
)
_BASE_WORD = re.compile(r"_\s*\{?\s*\\text\s*\{\s*([a-z]{2,9})\s*\}\s*\}?")
_ARC = re.compile(r"(?<=\d)\s*('{1,2})(?!')")
_REPEATING = re.compile(
    r"(\d*)\.(\d*)(?:\\(?:overline|bar|dot|overbar)\s*\{(\d{1,40})\}|\\(?:dot|bar|overline)\s*(\d)"
    r"|\((\d{1,40})\)(?=$|[^\d]))"
)
_DOTTED_PERIOD = re.compile(r"\\dot\s*\{?(\d)\}?(\d{0,30})\\dot\s*\{?(\d)\}?")
_MINUTES = re.compile(r"(\d{1,3})\s*\\degrees\s*(\d{1,2})\s*'(?:\s*(\d{1,2})\s*'')?(?!')")
_MICRO = re.compile(r"\\mu\s*(?:\\(?:text|mathrm|rm)\s*\{\s*)([a-zA-Z]{1,3})\s*\}")
_OHM = re.compile(r"(?<=[\d}])\s*(?:\\(?:mathrm|text)\{\s*)?\\Omega\s*\}?\s*$")
_UNIT_FRACTION = re.compile(
    r"\\[dt]?frac\s*\{\s*(\\(?:text|mathrm|rm)\s*\{(?![eid]\})[^{}]{1,20}\}(?:\^\{?-?\d\}?)?)\s*\}\s*\{\s*"
    r"(\\(?:text|mathrm|rm)\s*\{[^{}]{1,20}\}(?:\^\{?-?\d\}?)?)\s*\}"
)
_MODULO = re.compile(r"\\(?:mathrm|text|textrm|operatorname)\s*\{\s*mod\s*\}")
_CHOOSE = re.compile(
    r"(?:\{\s*\})?[_^]\{?\s*(\d{1,5})\s*\}?\s*C\s*_\{?\s*(\d{1,5})\s*\}?"
    r"|(?<![\w\\])(?:C|\\(?:mathrm|text)\{C\})\s*_\{?(\d{1,5})\}?\s*\^\{?(\d{1,5})\}?"
)
_DOTS = re.compile(r"(\d*)\.(\d{2,40})\s*(?:\.\.\.|\\(?:ldots|dots|cdots|dotsc)(?![a-zA-Z]))")
_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*")
_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<num>\d+\.?\d*(?:[eE][-+]?\d+(?![\d.a-zA-Z]))?|\.\d+(?:[eE][-+]?\d+(?![\d.a-zA-Z]))?)"
    r"|\\(?P<textcmd>text|mbox|textbf|textit|textrm|textnormal|textsf|texttt|emph|mathrm|operatorname\*?|hbox"
    r"|mathit|mathsf|mathtt|underline)\s*(?=\{)"
    r"|\\(?P<cmd>[a-zA-Z]+)"
    r"|(?P<row>\\\\(?:\[[^\]]{0,12}\])?)"
    r"|\\(?P<escaped>[^a-zA-Z])"
    r"|(?P<letters>[^\W\d_]+)"
    r"|(?P<rel><=|>=|!=|:=|=<|=>)"
    r"|(?P<op>.)",
    re.DOTALL,
)
_RELATION_COMMANDS = {
    command: meaning
    for commands, meaning in (
        ("le leq leqslant leqq", "<="), ("ge geq geqslant geqq", ">="), ("ne neq", "!="),
        ("approx approxeq simeq thickapprox doteq", "~="), ("lt", "<"), ("gt", ">"), ("cdot times ast", "*"),
        ("div", "/"), ("vert lvert rvert mid Vert lVert rVert", "|"), ("lbrace", "\\{"), ("rbrace", "\\}"),
        ("lparen", "("), ("rparen", ")"), ("lbrack", "["), ("rbrack", "]"), ("in", "in"), ("equiv", "=mod"),
        ("colon", ":"), ("pm", "+-"), ("mp", "-+"),
    )
    for command in commands.split()
}  # fmt: skip
_RELATIONS = {"<=": "<=", ">=": ">=", "!=": "!=", ":=": "=", "=<": "<=", "=>": ">="}
_ESCAPED = {"%": "%", "{": "\\{", "}": "\\}", "|": "|", **dict.fromkeys("#()[]/")}
_ALIASES = {
    command: meaning
    for commands, meaning in (
        ("dfrac tfrac cfrac nicefrac sfrac", "frac"), ("dbinom tbinom", "binom"),
        ("varnothing emptyset", "emptyset"), ("smallsetminus backslash setminus", "setminus"),
        ("dots cdots dotsc dotsb", "ldots"), ("varphi", "phi"), ("varepsilon", "epsilon"), ("vartheta", "theta"),
        ("bigcup", "cup"), ("land wedge", "and"), ("lor vee", "or"), ("arctg", "arctan"), ("tg", "tan"),
        ("ctg", "cot"), ("bm mathbf boldsymbol vec pmb overrightarrow", "bold"),
    )
    for command in commands.split()
}  # fmt: skip
_COMMAND_WORDS = {"and": "and", "or": "or", "forall": "for", "AA": "angstrom"}
_CURRENCY = {"$": "dollar", "£": "pounds_sterling", "€": "euro", "¥": "yen", "₹": "rupee"}


def tokenise(text: str, join_commas: bool) -> list[Token]:
    """Tokens of cleaned `text`. `join_commas` reads `1,250` as one number. Raises ReadError for too many tokens."""
    if r"\rational" in text:  # a command of our own
        raise ReadError(r"\rational")
    text = _TIMES_TEN.sub(r" \\times 10^", text).replace("**", "^")
    text = _CHOOSE.sub(_binomial, text) if "C" in text else text
    text = _ORDINAL.sub(" ", text)
    text = _DEGREE.sub("\\\\degrees ", text)
    if "\\" in text:
        text = _MODULO.sub(r"\\mod ", text)
        text = _UNIT_FRACTION.sub(r"\1/\2", text)
        text = _MICRO.sub(r"\\text{ u\1}", text)
        text = _OHM.sub(r"\\text{ ohm}", text)
        text = _MINUTES.sub(_sexagesimal, text)
        text = _PRIMES.sub(lambda m: "'" * (m.group().count("prime")), text)
        text = _BASE_WORD.sub(lambda m: f"_{{{NUMBER_WORDS[m[1]]}}}" if m[1] in NUMBER_WORDS else m.group(), text)
    text = _BASE.sub(lambda m: f"_{{{NUMBER_WORDS.get(m[1], m[1])}}}", text) if "base" in text else text
    if "'" in text:
        text = _ARC.sub(lambda m: r"\text{ arcsec }" if len(m[1]) == 2 else r"\text{ arcmin }", text)
    text = _SPACED_GROUPS.sub(lambda m: m.group().replace(" ", ""), text) if " " in text else text
    if join_commas:
        text = _COMMA_GROUPS.sub(_joined, text)
    text = _DECIMAL_COMMA.sub(".", text) if "," in text else text
    if "." in text:
        text = _DOTTED_PERIOD.sub(r"\\overline{\1\2\3}", text)
        text = _REPEATING.sub(lambda m: _rational(m[1], m[2], m[3] or m[4] or m[5]), text)
        text = _DOTS.sub(_dots, text)
    tokens: list[Token] = []
    _scan(text, tokens)
    return tokens


def has_comma_groups(text: str) -> bool:
    """True if the text has `1,250`, which can be one number or two."""
    return _COMMA_GROUPS.search(text) is not None


def _joined(match: re.Match[str]) -> str:
    """`1,250` as one number, unless a bracket holds nothing else: `(1,250)` is a pair, and so is `(1,250, 3,500)`."""
    text, start = match.string, match.start()
    opening = max(text.rfind(bracket, max(0, start - 200), start) for bracket in ("(", "[", "\\{"))
    closing = min((at for at in (text.find(c, match.end()) for c in (")", "]", "\\}")) if at >= 0), default=-1)
    if opening < 0 or closing < 0 or any(c in text[opening:start] for c in (")", "]", "\\}")):
        return match.group().replace(",", "")
    apart = re.search(r"[,;]\s", text[opening:closing]) is not None
    return match.group().replace(",", "") if apart else match.group()


def _scan(text: str, tokens: list[Token], words: bool = False) -> None:
    """Append the tokens of a text; with `words`, letters are words and not products of variables."""
    position = 0
    while position < len(text):
        word = _WORD.match(text, position) if words else None
        if word is not None:
            tokens.append(("word", word.group()))
            position = word.end()
            continue
        match = _TOKEN.match(text, position)
        assert match is not None
        position = match.end()
        kind = match.lastgroup
        if kind == "textcmd":
            position = _text_argument(text, position, match["textcmd"], tokens)
        elif kind != "space":
            tokens.extend(_convert(kind or "", match, tokens))
        if len(tokens) > MAX_TOKENS:
            raise ReadError("too many tokens")


def _convert(kind: str, match: re.Match[str], before: list[Token]) -> list[Token]:
    value = match[kind]
    if kind == "num":
        return [("num", value)]
    if kind == "cmd":
        return [_command(value)]
    if kind == "row":
        return [("op", "row")]
    if kind == "escaped":
        if value in _CURRENCY:
            return [("word", _CURRENCY[value])]
        known = _ESCAPED.get(value, "?")
        return [] if known is None else [("op", known)]
    if kind == "letters":
        spaced = match.string[match.start() - 1 : match.start()].isspace()
        return split_letters(value, _ends_value(before), spaced or not before)
    if kind == "rel":
        return [("op", _RELATIONS[value])]
    if value in _CURRENCY and value != "$":
        return [("word", _CURRENCY[value])]
    return [] if value in '$`"' else [("op", value)]


def _command(name: str) -> Token:
    if name in _RELATION_COMMANDS:
        return ("op", _RELATION_COMMANDS[name])
    name = _ALIASES.get(name, name)
    if name in _COMMAND_WORDS:
        return ("word", _COMMAND_WORDS[name])
    return ("cmd", name)


def _ends_value(tokens: list[Token]) -> bool:
    """True if a unit may follow: after a number, a word, a closing brace or bracket."""
    return bool(tokens) and (tokens[-1][0] in ("num", "word") or tokens[-1] in (("op", "}"), ("op", ")")))


def split_letters(run: str, after_number: bool, apart: bool = True) -> list[Token]:
    """A run of bare letters: a function, a word, or a product of one-letter variables.

    Letters directly after a number, as in `2mgL`, are a word only if nothing else is likely: not mg, not eV.
    """
    if after_number and not apart:
        named = run in FUNCTION_NAMES or run.lower() in NUMBER_WORDS or run.lower() in BARE_WORDS
        if run.isascii() and not named and (run not in BARE_UNITS or run in FORMULA_UNITS):
            return [("sym", letter) for letter in run]
    if run in FUNCTION_NAMES and not (after_number and run in UNITS):
        return [("cmd", FUNCTION_NAMES[run])]
    if not run.isascii() or (len(run) > 1 and (is_word(run) or (after_number and run in BARE_UNITS))):
        return [("word", run)]
    for name in ("pi", "sqrt"):
        if run.startswith(name):
            rest = run[len(name) :]
            return [("cmd", name), *(split_letters(rest, after_number=False) if rest else [])]
    return [("sym", letter) for letter in run]


def _text_argument(text: str, position: int, command: str, tokens: list[Token]) -> int:
    """Append the tokens of `{...}` after a text command: words, numbers, signs. Return the position after the brace."""
    depth, end = 0, position
    while end < len(text):
        character = text[end]
        if character == "\\":
            end += 2
            continue
        depth += (character == "{") - (character == "}")
        end += 1
        if depth == 0:
            break
    else:
        raise ReadError("unbalanced braces")
    content = text[position + 1 : end - 1]
    after_number = _ends_value(tokens)
    letter = content.strip()
    upright = command in ("mathrm", "mathit", "operatorname", "mathsf", "mathtt") and len(letter) == 1
    if upright and (not after_number or letter in "ie"):
        tokens.extend([("sym", letter)] if letter.isalpha() else [])
        return end
    if letter in FUNCTION_NAMES and not (after_number and letter in UNITS):
        tokens.append(("cmd", FUNCTION_NAMES[letter]))
        return end
    _scan(content, tokens, words=True)
    return end


def _binomial(match: re.Match[str]) -> str:
    """`_{10}C_3` and `C_{10}^{3}`; `C_1^2` is the square of a constant."""
    above, below = match[1] or match[3], match[2] or match[4]
    return match.group() if match[3] and int(above) < int(below) else rf"\binom{{{above}}}{{{below}}}"


def _sexagesimal(match: re.Match[str]) -> str:
    """`22^\\circ 30'` as degrees."""
    seconds = 3600 * int(match[1]) + 60 * int(match[2]) + int(match[3] or 0)
    return f"\\rational{{{seconds}}}{{3600}}\\degrees "


def _dots(match: re.Match[str]) -> str:
    """`0.333...` and `0.1212...` with the shortest period that repeats at the end; otherwise unchanged."""
    digits = match[2]
    for size in range(1, len(digits) // 2 + 1):
        period = digits[-size:]
        repeats = 1
        while digits.endswith(period * (repeats + 1)):
            repeats += 1
        if repeats >= (3 if size == 1 and len(digits) > 2 else 2):
            return _rational(match[1], digits[: len(digits) - size * repeats], period)
    return match.group()


def _rational(whole: str, head: str, period: str) -> str:
    value = Fraction(int(whole + head or "0"), 10 ** len(head))
    value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(head))
    return f"\\rational{{{value.numerator}}}{{{value.denominator}}}"
