"""Words in answers: function names, connectives, fillers, units, yes and no. Data and look-ups only."""

import re
from fractions import Fraction

FUNCTION_NAMES = {
    name: name
    for name in (
        "sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth arcsinh arccosh arctanh ln log lg exp "
        "cis sqrt pi gcd lcm max min mod binom det infty theta alpha"
    ).split()
}
FUNCTION_NAMES |= {
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "asinh": "arcsinh", "acosh": "arccosh", "atanh": "arctanh",
    "arsinh": "arcsinh", "arcosh": "arccosh", "artanh": "arctanh", "infinity": "infty", "inf": "infty", "oo": "infty",
    "sen": "sin", "Pi": "pi",
}  # fmt: skip

CONNECTIVES = frozenset({"and", "or"})

# Words that carry no value before an answer: "The answer is 9", "Option D", "approximately 3".
FILLERS = frozenset(
    """the a an answer answers is are be final solution solutions result value values equals equal to of total sum
    number so thus therefore hence then we get have it that this there only exactly option choice case my your
    length area volume perimeter probability distance speed ratio angle maximum minimum largest smallest
    integer roots limit set interval range domain function on approximately about approx around roughly required
    desired remainder point points vertex vertices coordinates vector matrix center""".split()
)

# Words before a colon that tell one value from another.
OPPOSITES = frozenset(
    "maximum minimum max min largest smallest greatest least highest lowest first second third last left right".split()
)

VERBS = frozenset("is are equals equal was were has have".split())

# Words that open a sentence.
OPENERS = frozenset("therefore thus hence so then finally both".split())

# Words after a value that change what it says: never taken for a unit.
CHANGING = frozenset(
    """or more less fewer greater than least most not no none never over under above below between plus minus
    times dozen hundred thousand million billion trillion half double twice if unless except without remainder
    mod modulo base from through until up but only either neither nor any all infinitely many undefined infinite
    infinity squared cubed k squared-off other others both is are was were wrong incorrect false someone
    halves halved half quarter quarters thirds score scores gross myriad lakh lakhs crore crores doubled tripled
    factorial reciprocal inverse root roots am pm rejected extraneous invalid""".split()
)

_PARTS = re.compile(
    r"(four|fif|six|seven|eigh|nin|ten|eleven|twelf|[a-z]+(teen|tie|dred|sand|illion))ths?|[a-z]+illions?"
)


def changes(word: str) -> bool:
    """Whether a word after a number changes its meaning: `hundredths`, `or`, `is wrong`; the kelvin does not."""
    word = word.lower() if len(word) > 1 else word
    return word in CHANGING or word in CONDITION_STARTS or _PARTS.fullmatch(word) is not None


# Words behind a number that multiply it.
MULTIPLIERS = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}

# A condition on a parameter that may follow an answer: "for all integers k", "where C is an arbitrary constant".
CONDITION_STARTS = frozenset({"for", "where", "with", "any", "all"})
CONDITION_WORDS = CONDITION_STARTS | frozenset(
    "every some is are an a the integer integers positive nonnegative non-negative negative real natural number "
    "numbers constant constants arbitrary in being and be".split()
)

NUMBER_WORDS = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
}
NUMBER_WORDS.update({"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90})


def spoken_number(words: str) -> int | None:
    """The value of `seven` or `twenty-one`, else None."""
    parts = words.replace("-", " ").split()
    values = [NUMBER_WORDS.get(part) for part in parts]
    if len(values) == 1:
        return values[0]
    if len(values) == 2 and None not in values and values[0] in range(20, 100, 10) and values[1] in range(1, 10):
        return sum(value for value in values if value is not None)
    return None


# Phrases with one meaning, after lower-casing and joining with blanks.
_SYNONYMS = {
    other: phrase
    for phrase, others in (
        ("no solution", "none|no solutions|no solution exists|no solutions exist|there is no solution|"
                 "there are no solutions|no real solution|no real solutions|empty set"),
        ("does not exist", "dne|do not exist|doesn't exist"), ("undefined", "undefined"),
        ("infinitely many", "infinite|infinitely many solutions|infinite solutions"), ("true", "true"),
        ("impossible", "impossible|not possible"), ("cannot be determined", "cannot be determined"),
        ("all reals", "all real numbers|all reals|all real|real numbers"), ("monday", "mon"),
        ("tuesday", "tue|tues"), ("wednesday", "wed"), ("thursday", "thu|thur|thurs"), ("friday", "fri"),
        ("saturday", "sat"), ("sunday", "sun"),
    )
    for other in others.split("|")
}  # fmt: skip
_ARTICLES = frozenset({"the", "a", "an"})
_NON_WORD = re.compile(r"[^\w\s']|_")


def phrase(text: str) -> str:
    """A text answer in a normalised spelling: lower case, no punctuation, no articles, synonyms unified."""
    words = _NON_WORD.sub(" ", text.lower()).split()
    while words and words[0] in FILLERS - OPPOSITES and len(words) > 1:
        words.pop(0)
    joined = " ".join(word for word in words if word not in _ARTICLES or len(words) == 1)
    return _SYNONYMS.get(joined, joined)


# --- units: (dimension exponents, factor to the base unit as text) -------------------------------------------------

_UNIT_LINES = """
m:1: m meter meters metre metres 米
m:1000: 公里
m:0.000001: micron microns
m:0.0000000001: angstrom angstroms
m:0.0254: in inch inches
m:0.3048: ft foot feet
m:0.9144: yd yard yards
m:1609.344: mi mile miles
m:149597870700: au
m:30856775814913673: pc parsec parsecs
s:1: s sec secs second seconds 秒
s:60: min mins minute minutes 分钟
s:3600: h hr hrs hour hours 小时
s:86400: d day days 天
s:604800: wk week weeks
month:1: month months
s:31557600: yr yrs year years
g:1: g gram grams 克
g:1000: kilo kilos 公斤
g:453.59237: lb lbs pound pounds
g:28.349523125: oz ounce ounces
g:1000000: ton tons tonne tonnes
money:1: dollar dollars usd bucks
money:0.01: cent cents penny pennies
eur:1: euro euros eur
gbp:1: pounds_sterling gbp
rupee:1: rupee rupees rs
yen:1: yen
yuan:1: yuan rmb 元
angle:1: degree degrees deg
angle:57.29577951308232087679815481410517: rad radian radians
angle:0.01666666666666666666666666666667: arcmin arcminute arcminutes
angle:0.00027777777777777777777777777778: arcsec arcsecond arcseconds
temperature_c:1: celsius
temperature_f:1: fahrenheit
temperature_k:1: kelvin kelvins K
percent:1: percent percentage pct
mol:1: mol mole moles
A:1: A amp amps ampere amperes
data:1: b bit bits
data:8: B byte bytes
s:3155760000: century centuries
s:315576000: decade decades
m:201.168: furlong furlongs
m=3: 0.001: L l liter liters litre litres 升
m=3: 0.000001: ml mL milliliter milliliters cc
m=3: 0.003785411784: gal gallon gallons
m=3: 0.000946352946: qt quart quarts
m=2: 10000: hectare hectares ha
m=2: 4046.8564224: acre acres
m=1,s=-1: 0.44704: mph
m=1,s=-1: 0.27777777777777777777777777777778: kph kmh kmph
s=-1: 1: Hz hertz
s=-1: 0.01666666666666666666666666666667: rpm
g=1,m=1,s=-2: 1000: N newton newtons
g=1,m=1,s=-2: 0.01: dyn dyne dynes
g=1,m=2,s=-2: 1000: J joule joules
g=1,m=2,s=-2: 0.0001: erg ergs
g=1,m=2,s=-2: 0.0000000000000001602176634: eV
g=1,m=2,s=-2: 4184: cal calorie calories
g=1,m=2,s=-3: 1000: W watt watts
g=1,m=-1,s=-2: 1000: Pa pascal pascals
g=1,m=-1,s=-2: 101325000: atm
A=1,s=1: 1: C coulomb coulombs
g=1,m=2,s=-3,A=-1: 1000: V volt volts
g=-1,m=-2,s=4,A=2: 0.001: F farad farads
g=1,s=-2,A=-1: 1000: T tesla teslas
g=1,m=2,s=-2,A=-2: 1000: H henry
g=1,m=2,s=-2,A=-1: 1000: Wb weber webers
g=-1,m=-2,s=3,A=2: 0.001: S siemens
g=1,m=2,s=-3,A=-2: 1000: ohm ohms
"""


def _units() -> dict[str, tuple[dict[str, int], str]]:
    table: dict[str, tuple[dict[str, int], str]] = {}
    for line in _UNIT_LINES.strip().splitlines():
        dimensions, factor, names = line.split(":")
        powers = {name: int(power or 1) for name, _, power in (part.partition("=") for part in dimensions.split(","))}
        table.update({name: (powers, factor.strip()) for name in names.split()})
    return table


SI_PREFIXES = {"f": -15, "p": -12, "n": -9, "u": -6, "m": -3, "c": -2, "d": -1, "h": 2, "k": 3, "M": 6, "G": 9, "T": 12}
SI_PREFIX_WORDS = {
    "厘": -2, "毫": -3, "千": 3, "公": 3,
    "femto": -15, "pico": -12, "nano": -9, "micro": -6, "milli": -3, "centi": -2, "deci": -1, "hecto": 2, "kilo": 3,
    "mega": 6, "giga": 9, "tera": 12,
}  # fmt: skip
SI_SYMBOLS = frozenset("m g s A V W J N Pa Hz eV C F T H Wb S mol L l cal ohm B b pc".split())
SI_WORDS = frozenset(
    "米 克 meter meters metre metres gram grams second seconds amp amps ampere amperes volt volts watt watts joule "
    "joules newton newtons pascal pascals hertz coulomb coulombs farad farads tesla henry liter liters litre litres "
    "calorie calories ohm ohms byte bytes bit bits mole moles parsec parsecs".split()
)


def _prefixed(table: dict[str, tuple[dict[str, int], str]]) -> dict[str, tuple[dict[str, int], str]]:
    """SI units with prefixes: kN, GHz, mA, kilovolts."""
    return {
        prefix + name: (table[name][0], str(Fraction(table[name][1]) * Fraction(10) ** power))
        for prefixes, names in ((SI_PREFIXES, SI_SYMBOLS), (SI_PREFIX_WORDS, SI_WORDS))
        for prefix, power in prefixes.items()
        for name in names
    }


_PLAIN_UNITS = _units()
UNITS = {**_prefixed(_PLAIN_UNITS), **_PLAIN_UNITS}
UNIT_PREFIXES = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
UNIT_SUFFIXES = {"squared": 2, "cubed": 3}
# Bare letters that are a unit even outside \text: two letters and more, and not a likely product of variables.
_AMBIGUOUS = frozenset("in au pc us um ha ms rs yd mi ml ton rad min".split())
_SYMBOLS = frozenset("cm mm km nm mg kg kJ kW kcal kHz MHz GHz keV MeV GeV".split())
BARE_UNITS = _SYMBOLS | frozenset(n for n in UNITS if len(n) > 5 or (len(n) > 1 and n in _PLAIN_UNITS)) - _AMBIGUOUS

FORMULA_UNITS = frozenset({"mg", "eV"})  # also products: 2mg, 2eV
LONG_UNITS = frozenset(name for name in BARE_UNITS if len(name) > 2)

BARE_WORDS = (
    CONNECTIVES
    | FILLERS
    | CHANGING
    | CONDITION_WORDS
    | LONG_UNITS
    | frozenset(NUMBER_WORDS)
    | frozenset(word for entry in [*_SYNONYMS, *_SYNONYMS.values()] for word in entry.split())
    | frozenset(
        "yes no true false even odd north south east west left right up down red blue square unit units".split()
    )
) - frozenset({"a", "in", "is", "be", "at", "an", "to", "of", "so", "we", "it", "my"})


def is_word(run: str) -> bool:
    """True if a run of two or more bare letters is a word and not a product of variables."""
    if run in BARE_WORDS or run.lower() in BARE_WORDS:
        return True
    if len(run) < 4 or sum(letter.isupper() for letter in run) > 1:  # an acronym is a product, or a name
        return False
    return list(run) != sorted(set(run))  # abcd, wxyz: variables in a row
