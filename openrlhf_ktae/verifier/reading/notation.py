"""Names of LaTeX commands by kind: symbols, functions, accents, brackets. Data only."""

RELATIONS = frozenset({"=", "<", ">", "<=", ">=", "!=", "~=", "in", "=mod"})
SYMBOLS = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega hbar ell odot partial nabla triangle angle square "
    "Alpha Beta Epsilon star bullet circ top perp parallel prime ldots oplus Box imath jmath max min Pr".split()
)
ACCENTS = frozenset("dot ddot hat widehat bar overline tilde widetilde mathcal mathscr mathfrak overarc".split())
LIST_FUNCTIONS = frozenset({"gcd", "lcm", "max", "min"})
FUNCTIONS = LIST_FUNCTIONS | frozenset(
    "cis sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth arcsinh arccosh arctanh ln log lg "
    "exp".split()
)
UNIT_VECTORS = {"i": "hat_i", "j": "hat_j", "k": "hat_k", "imath": "hat_i", "jmath": "hat_j"}
INVERSE = {name: "arc" + name for name in ("sin", "cos", "tan", "cot", "sinh", "cosh", "tanh")}
BRACKET_PAIRS = {"(": (")", "]"), "[": ("]", ")"), "\\{": ("\\}",), "{": ("}",)}
TEMPERATURES = {"C": "celsius", "F": "fahrenheit", "K": "kelvin"}
NUMBER_SETS = frozenset({"R", "Z", "N", "Q", "C", "0"})  # 0: the empty set
MATRICES = frozenset({"pmatrix", "bmatrix", "matrix", "smallmatrix", "array", "Bmatrix"})
CURRENCIES = frozenset({"dollar", "pounds_sterling", "euro", "yen", "rupee", "Rs", "USD", "EUR", "GBP"})
PUNCTUATION = frozenset({"(", ")", ".", "!", "?", "'", ":", "{", "}"})

# Commands that end a factor and cannot begin one.
CLOSING_COMMANDS = frozenset(
    "cup cap setminus mod pmod bmod rfloor rceil rangle end degrees quad to rightarrow implies equiv sim subset "
    "over notin Rightarrow iff choose".split()
)
