r"""Text as written by models and data sets -> one plain spelling. Linear passes, standard library only.

Cleaning ignores meaning: it removes look-alike and invisible characters, spacing and styling commands, and turns digits
and fractions of other scripts into ASCII. Numbers and lists are recognised later.
"""

import functools
import re
import unicodedata

_INVISIBLE = re.compile(
    "[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e"
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎", "0123456789+-()")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ]+")
_SUBSCRIPT_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₍₎]+")
_VULGAR = re.compile("[¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]")
_CHARACTERS = {
    character: spelled
    for characters, spelled in (
        ("−–—‒―﹣－‐‑", "-"), ("×✕✖", r"\times "), ("·⋅∙•", r"\cdot "), ("°º˚", r"^\circ "), ("′’ʹ", "'"),
        ("〈⟨", r"\langle "), ("〉⟩", r"\rangle "), ("，、", ","), ("。", "."), ("∖", r"\setminus "), ("“”„‟", '"'),
        ("″", "''"), ("¢", r"\text{ cents}"), ("µ", r"\mu "), ("÷⁄∕", "/"), ("±", r"\pm "), ("∓", r"\mp "),
        ("√", r"\radical "), ("∛", r"\sqrt[3]"), ("∞", r"\infty "), ("≤⩽", r"\le "), ("≥⩾", r"\ge "),
        ("≠", r"\ne "), ("≈", r"\approx "), ("≡", r"\equiv "), ("∈", r"\in "), ("∪", r"\cup "),
        ("∩", r"\cap "), ("∅", r"\emptyset "), ("ℝ", r"\mathbb{R}"), ("ℤ", r"\mathbb{Z}"),
        ("ℕ", r"\mathbb{N}"), ("ℚ", r"\mathbb{Q}"), ("ℂ", r"\mathbb{C}"), ("∠", r"\angle "),
        ("△", r"\triangle "), ("⌊", r"\lfloor "), ("⌋", r"\rfloor "), ("⌈", r"\lceil "), ("⌉", r"\rceil "),
        ("…", r"\ldots "), ("∑", r"\sum "), ("∏", r"\prod "), ("∫", r"\int "), ("∂", r"\partial "),
        ("ϕ", r"\phi "), ("ϵ", r"\epsilon "),
    )
    for character in characters
}  # fmt: skip
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho . sigma tau upsilon phi "
    "chi psi omega"
).split()
for _index, _name in enumerate(_GREEK):
    if _name != ".":
        _CHARACTERS[chr(0x3B1 + _index)] = f"\\{_name} "
        _CHARACTERS[chr(0x391 + _index)] = f"\\{_name.capitalize()} "
_TRANSLATION = {ord(key): value for key, value in _CHARACTERS.items()}

_THOUSANDS = re.compile(r"(?<=\d)(?:,\s*\\!|\{\s*,\s*\}|\\[,;:!> ]|~)\s*(?=\d{3}(?!\d))")
_APOSTROPHES = re.compile(r"(?<![\d.])\d{1,3}(?:'\d{3})+(?![\d'])")
_BRACED_SIGN = re.compile(r"(?:\\(?:text|mathrm)\s?)?\{\s{0,4}([-:=+<>])\s{0,4}\}")
_SEPARATE_MATHS = re.compile(r"\$\s*([,;])\s*\$")
_NEUTRAL = re.compile(
    r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|nolimits|mathopen|mathclose|mathrel"
    r"|boxed|fbox|quad|qquad|thinspace|medspace|thickspace|enspace|space|hfill|negthinspace|nobreak"
    r"|allowbreak|rm|bf|it|sf|tt|strut|par|noindent|tiny|small|normalsize|large|Large|LARGE|huge|Huge|ensuremath"
    r"|checkmark|blacksquare|qed|mathdollar|textdollar|therefore|because|centering|hspace\*?\{[^{}]{0,40}\}|[vh]?phantom\{[^{}]{0,40}\}"
    r"|label\{[^{}]{0,40}\}|tag\{[^{}]{0,40}\})(?![a-zA-Z])|\\[,;:!>]|(?<!\\)\\(?=\s|$)|(?<!\\)~"
)
_LEADING_SIGN = re.compile(
    r"^\s*(?:=(?![=<>])|:(?!=)|\\(?:Rightarrow|implies|Longrightarrow|to|sim)(?![a-zA-Z]))\s*(?=\S)"
)
_BARE_ROMAN = re.compile(r"\\(mathrm|text|rm)\s+([a-zA-Z])(?![a-zA-Z])")
_ROMAN = re.compile(r"\{\s*\\rm(?![a-zA-Z])[\s~\\]*([a-zA-Z/ .]{1,40})\}")
_BRACKETED_UNIT = re.compile(
    r"(?<=\d)\s*[(\[{]\s*(\\(?:text|mathrm|mbox|textrm)\s*\{[^{}0-9]{1,40}\}(?:\^\{?-?\d\}?)?)\s*[)\]}]\s*$"
)
_BRACKETED_REMARK = re.compile(r"(?<=[\d} ])\s*\\(text|mathrm|mbox|textrm)\s*\{\s*\(([a-zA-Z ^/]{1,40})\)\s*\}\s*$")
_ONLY = re.compile(r"\\text\s*\{\s*(?:is the )?only(?: (?:solution|answer|value|one))?\s*\.?\s*\}\s*$")
_NULL_DELIMITER = re.compile(r"\\(?:left|right)\s*\.")
_COLOUR = re.compile(r"\\(?:text)?color(?:box)?\s*(?:\[[^\]]{0,20}\])?\s{0,9}\{[^{}]{0,40}\}")
_DOUBLED = re.compile(r"\\\\(?=[a-zA-Z(){}\[\],;!%])")
_EATEN = re.compile(
    "\x0c(?=rac)|\x08(?=oxed|inom|ar|eta|egin)|\t(?=ext|imes|heta|an(?![a-z])|frac|riangle|au)|\r(?=ight|angle|ho)"
)
_ESCAPES = {"\x0c": r"\f", "\x08": r"\b", "\t": r"\t", "\r": r"\r"}
_INTRODUCTION = re.compile(
    r"^(\\text\s*\{\s*)?(?:(?:so|thus|therefore|hence),?\s+)?(?:the\s+)?(?:final\s+|correct\s+)?"
    r"answer(?:\s+is\s*:?|\s*[:=])\s*(?(1)\}\s*)(?=\S)",
    re.IGNORECASE,
)


def restore_escapes(text: str) -> str:
    r"""Restore commands that a JSON reader began with a control character: `\f` + `rac`."""
    return _EATEN.sub(lambda eaten: _ESCAPES[eaten.group()], text)


@functools.lru_cache(maxsize=1024)
def clean(text: str) -> str:
    r"""One spelling for look-alikes: `½` -> `\frac{1}{2}`, `−` -> `-`, `７` -> `7`, `\left(` -> `(`."""
    text = _INTRODUCTION.sub("", restore_escapes(text))
    text = _INVISIBLE.sub("", text)
    if not text.isascii():
        text = _ascii(text)
    if "\\\\" in text:
        text = _halve_backslashes(text)
    text = _SEPARATE_MATHS.sub(r" \1 ", text)
    if "'" in text:
        text = _APOSTROPHES.sub(lambda number: number.group().replace("'", ""), text)
    text = _LEADING_SIGN.sub("", text)
    if "{" in text:
        text = _THOUSANDS.sub("", text)
        text = _BRACED_SIGN.sub(r"\1", text)
    if "\\" in text or "~" in text:
        text = _THOUSANDS.sub("", text)
        text = _COLOUR.sub(" ", text)
        text = _BARE_ROMAN.sub(r"\\mathrm{\2}", text)
        text = _ROMAN.sub(r"\\text{ \1}", text)
        text = _NULL_DELIMITER.sub(" ", text)
        text = _ONLY.sub(" ", _NEUTRAL.sub(" ", text))
        text = _BRACKETED_UNIT.sub(r" \1", _BRACKETED_REMARK.sub(r"\\\1{ \2}", text))
    text = text.strip().removeprefix("\\\\").strip()
    return text[2:-2] if len(text) > 4 and text.startswith("**") and text.endswith("**") else text


def _halve_backslashes(text: str) -> str:
    """Undo double escaping (an artefact of JSON), but keep the row ends of matrices."""
    if "\\\\begin" in text:
        return text.replace("\\\\", "\\")
    return text if "\\begin" in text else _DOUBLED.sub(r"\\", text)


def _ascii(text: str) -> str:
    text = _SUPERSCRIPT_RUN.sub(lambda run: "^{" + run.group().translate(_SUPERSCRIPTS) + "}", text)
    text = _SUBSCRIPT_RUN.sub(lambda run: "_{" + run.group().translate(_SUBSCRIPTS) + "}", text)
    text = _VULGAR.sub(_vulgar_fraction, text)
    text = text.translate(_TRANSLATION)
    text = unicodedata.normalize("NFKC", text).translate(_TRANSLATION)
    return "".join(c if c.isascii() else str(unicodedata.decimal(c, c)) for c in text)  # digits of any script


def _vulgar_fraction(match: re.Match[str]) -> str:
    above, below = unicodedata.normalize("NFKC", match.group()).split("⁄")
    return f"\\frac{{{above}}}{{{below}}}"
