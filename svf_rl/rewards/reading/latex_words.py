"""What the words of a mathematical answer mean: functions, constants, separators, scales, variables, or units."""

from collections.abc import Iterator

from svf_rl.rewards.reading.latex_tokens import NotMathematics, Token

_FUNCTIONS = frozenset("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp max min gcd lcm".split())
_CONSTANTS = {"pi": r"\pi", "infinity": r"\infty", "sqrt": r"\sqrt"}
_SCALES = {"hundred": "2", "thousand": "3", "million": "6", "billion": "9", "trillion": "12"}
# Words that are answers, though as short as products of letters
_ANSWERS = frozenset(
    "yes no not on off all any odd even one two six ten both none true red tom may sun mon tue wed thu fri sat "
    "jan feb mar apr jun jul aug sep oct nov dec".split()
)
_SHORT_UNITS = frozenset(
    "cm mm km nm dm kg mg ml ft in mi hr hrs lb lbs oz yd sq sec min mph kph deg day days cup cups bag bags box "
    "car cars egg eggs ton tons gal men pie dog dogs cat cats way ways year of a per".split()
)
# Units whose names are one: the first of each group
UNIT_OF = {
    name: names.split()[0]
    for names in (
        "km kilometer kilometers", "m meter meters", "cm centimeter centimeters", "mm millimeter millimeters",
        "mi mile miles", "ft foot feet", "in inch inches", "yd yard yards", "hr hrs hour hours", "min minute minutes",
        "sec s second seconds", "day days", "week weeks", "month months", "year years", "kg kilogram kilograms",
        "g gram grams", "lb lbs pound pounds", "oz ounce ounces", "dollar dollars", "cent cents",
    )
    for name in names.split()
}  # fmt: skip
# Words that make another statement of the number before them
_NOT_UNITS = frozenset(
    "and or to maybe perhaps possibly probably at least most less more than fewer not but some approximately "
    "about through between over under plus minus times factorial score squared cubed if when where with is are "
    "was equals also tenth tenths hundredth hundredths thousandth thousandths".split()
)
# Commands of which the comparison knows the meaning
_KNOWN = frozenset(
    r"\frac \sqrt \cdot \pm \mp \pi \infty \binom \cup \cap \emptyset \circ \alpha \beta \gamma \delta \theta "
    r"\lambda \mu \nu \phi \varphi \psi \omega \rho \sigma \tau \epsilon \varepsilon \eta \xi \zeta \kappa \chi "
    r"\Delta \Omega \Gamma \Sigma \Phi \Theta \Lambda \ell \begin{pmatrix} \end{pmatrix} \overline \lfloor \rfloor "
    r"\lceil \rceil \mod \sum \prod \int \lim \angle \triangle \vec \hat \bar \prime \dots \ldots \cdots \det "
    r"\langle \rangle".split()
) | {rf"\{name}" for name in _FUNCTIONS}


_VALUES = (r"\pi", r"\infty", "%", r"\circ")


def resolve_words(tokens: list[Token]) -> Iterator[Token]:
    """The tokens with words as what they mean: functions, constants, separators, variables, units."""
    follows_value = False
    index = 0
    while index < len(tokens):
        token = tokens[index]
        index += 1
        if token.kind == "text" or (token.kind == "word" and len(token.text) > 1):
            words = token.text.split()
            while index < len(tokens) and tokens[index].kind == "word" and token.kind == "word" and _is_unit(words):
                words += [tokens[index].text]
                index += 1
            found = _mean(words, token.kind, follows_value)
        elif token.kind == "command" and token.text not in _KNOWN and not token.text.startswith(r"\mathbb"):
            raise NotMathematics
        else:
            found = [token]
        yield from found
        if found:
            last = found[-1]
            follows_value = last.kind in ("number", "close", "word", "unit") or last.text in _VALUES


def _is_unit(words: list[str]) -> bool:
    return bool(words) and all(word.strip(".-,").isalpha() and word.lower() not in _NOT_UNITS for word in words)


def _mean(words: list[str], kind: str, follows_value: bool) -> list[Token]:
    """What words mean, behind a value or elsewhere; those of a `\\text` (of kind "text") are no product of letters."""
    phrase = " ".join(words).lower().strip(",. ")
    if phrase in ("and", "or", ""):
        return [Token("separator", ",")]
    if phrase in ("am", "pm", "a.m", "p.m"):
        raise NotMathematics
    if phrase in ("percent", "per cent", "pct"):
        return [Token("sign", "%")]
    if phrase in _FUNCTIONS or phrase in _CONSTANTS:
        return [Token("command", _CONSTANTS.get(phrase, rf"\{phrase}"))]
    if phrase == "mod":
        return [Token("command", r"\mod")]
    if words[0].lower() == "dozen" and follows_value and len(words) == 1:
        return [Token("command", r"\cdot"), Token("number", "12")]
    if words[0].lower() in _SCALES and follows_value and _is_unit(words):
        power = [Token("command", r"\cdot"), Token("number", "10"), Token("sign", "^"), Token("open", "{")]
        power += [Token("number", _SCALES[words[0].lower()]), Token("close", "}")]
        return power + [Token("unit", phrase)] * (len(words) > 1)
    if kind == "text":
        if follows_value and _is_unit(words) and len(words) <= 6:
            return [Token("unit", phrase)]
        if not follows_value and all(word.isalpha() for word in words):
            return [Token("text", phrase)]
        raise NotMathematics
    if follows_value and all(len(word) >= 4 or word in _SHORT_UNITS for word in words) and _is_unit(words):
        return [Token("unit", phrase)]
    if phrase in _ANSWERS and not follows_value:
        return [Token("text", phrase)]
    if len(words) == 1 and (len(phrase) <= 3 or (words[0].isupper() and len(phrase) <= 4)):
        return [Token("word", letter) for letter in words[0]]  # a product
    if follows_value or not _is_unit(words):
        raise NotMathematics
    return [Token("text", phrase)]
