"""How Go's fmt and strconv write values: %v of lists, maps and structs, Printf's verbs, quoted strings.

Values are those of a template: bool, int, float, str, list, dict (a map), None (nil) and those of gotypes.py.
Deliberately absent: verbs nobody writes in a format (%b, %e, %p, explicit argument indexes).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["kind", "quoted", "sprint", "sprintf", "sprintln", "text", "unquoted"]

SHORT = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}
LONG = {value[1]: key for key, value in SHORT.items()} | {"\\": "\\", "'": "'", '"': '"'}
EXPONENT = 6
"""From ten to this power on the shortest form of a float64 has an exponent (strconv's eprec)."""
WIDEST = 10_000
"""Of a width or precision in Printf: foreign formats must not ask for gigabytes."""


def quoted(text: str) -> str:
    """strconv.Quote."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    out = []
    for letter in text:
        code = ord(letter)
        if letter in '"\\':
            out.append("\\" + letter)
        elif letter.isprintable():
            out.append(letter)
        elif letter in SHORT:
            out.append(SHORT[letter])
        elif code < 0x20 or code == 0x7F:
            out.append(f"\\x{code:02x}")
        elif code <= 0xFFFF:
            out.append(f"\\u{code:04x}")
        else:
            out.append(f"\\U{code:08x}")
    return '"' + "".join(out) + '"'


def unquoted(text: str) -> str:
    """strconv.Unquote of "..", `..` and '..'. Raises ValueError."""
    body = text[1:-1]
    if text[0] == "`":
        return body.replace("\r", "")
    out = []
    position = 0
    while position < len(body):
        letter = body[position]
        position += 1
        if letter != "\\":
            out.append(letter)
            continue
        mark = body[position : position + 1]
        length = {"x": 2, "u": 4, "U": 8}.get(mark, 0)
        if length:
            digits = body[position + 1 : position + 1 + length]
            if len(digits) != length:
                raise ValueError("invalid syntax")
            out.append(chr(int(digits, 16)))
            position += 1 + length
        elif mark and mark in "01234567":
            out.append(chr(int(body[position : position + 3], 8)))
            position += 3
        elif mark in LONG and mark:
            out.append(LONG[mark])
            position += 1
        else:
            raise ValueError("invalid syntax")
    return "".join(out)


def _float(number: float) -> str:
    """%v of a float64: the shortest digits, with an exponent below 1e-4 and from 10**EXPONENT on."""
    if number != number or number in (float("inf"), float("-inf")):
        return {"inf": "+Inf", "-inf": "-Inf"}.get(str(number), "NaN")
    digits = next(digits for digits in range(17) if float(f"{number:.{digits}e}") == number)
    shown = f"{number:.{digits}e}"
    exponent = int(shown.partition("e")[2])
    return f"{number:.{max(0, digits - exponent)}f}" if -4 <= exponent < EXPONENT else shown


def text(value: Any) -> str:
    """%v of a value inside another one or given to Print: nil is "<nil>"."""
    if isinstance(value, str):
        return value
    if value is None:
        return "<nil>"
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, list):
        return "[" + " ".join(map(text, value)) + "]"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{text(value[key])}" for key in sorted(value)) + "]"
    return str(value)


def kind(value: Any) -> str:
    """The name of a value's Go type, as error texts show it."""
    if value is None:
        return "nil"
    for python, name in ((bool, "bool"), (str, "string"), (int, "int"), (float, "float64"), (list, "[]interface {}")):
        if isinstance(value, python):
            return name
    return "map[string]interface {}" if isinstance(value, dict) else str(getattr(value, "go_type", "interface {}"))


def sprint(values: Sequence[Any]) -> str:
    """fmt.Sprint: a blank between two operands of which neither is a string."""
    out = ""
    for index, value in enumerate(values):
        if index and not isinstance(value, str) and not isinstance(values[index - 1], str):
            out += " "
        out += text(value)
    return out


def sprintln(values: Sequence[Any]) -> str:
    """fmt.Sprintln."""
    return " ".join(map(text, values)) + "\n"


class _Verb:
    """One directive of a format: flags, width, precision, letter."""

    def __init__(self) -> None:
        self.flags = ""
        self.width = 0
        self.precision: int | None = None

    def padded(self, shown: str, *, number: bool = False) -> str:
        missing = self.width - len(shown)
        if missing <= 0:
            return shown
        if "-" in self.flags:
            return shown + " " * missing
        if "0" in self.flags and number:
            sign = shown[0] if shown[:1] in ("+", "-") else ""
            return sign + "0" * missing + shown[len(sign) :]
        return " " * missing + shown

    def apply(self, letter: str, value: Any) -> str:
        if letter == "v":
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return self.padded(text(value), number=number)
        if isinstance(value, list) and letter in "sqdxX":
            return "[" + " ".join(self.apply(letter, each) for each in value) + "]"
        shown = self._string(letter, value) if isinstance(value, str) else self._other(letter, value)
        if shown is None:
            inner = "<nil>" if value is None else f"{kind(value)}={text(value)}"
            return f"%!{letter}({inner})"
        return self.padded(shown, number=isinstance(value, int | float))

    def _string(self, letter: str, value: str) -> str | None:
        if self.precision is not None and letter in "sq":
            value = value[: self.precision]
        if letter == "s":
            return value
        if letter == "q":
            return quoted(value)
        if letter in "xX":
            shown = value.encode("utf-8", "surrogateescape").hex()
            return shown.upper() if letter == "X" else shown
        return None

    def _other(self, letter: str, value: Any) -> str | None:
        if isinstance(value, bool):
            return text(value) if letter == "t" else None
        if isinstance(value, int):
            forms = {"d": "d", "x": "x", "X": "X", "o": "o", "b": "b"}
            if letter in "cq":
                return chr(value) if letter == "c" else f"'{chr(value)}'"
            if letter == "U":
                return f"U+{value:04X}"
            shown = format(value, forms[letter]) if letter in forms else None
            return "+" + shown if shown and "+" in self.flags and value >= 0 else shown
        if isinstance(value, float):
            precision = 6 if self.precision is None else self.precision
            if letter == "g" and self.precision is None:
                return _float(value)
            return format(value, f".{precision}{letter}") if letter in "feEgG" else None
        return text(value) if letter == "s" and value is not None else None


def sprintf(form: str, values: Sequence[Any]) -> str:
    """fmt.Sprintf with %v %s %q %d %x %X %o %c %t %f %g %e %T %%, flags - + 0, width, precision, and "*"."""
    out = []
    position = used = 0
    while True:
        start = form.find("%", position)
        if start < 0:
            out.append(form[position:])
            break
        out.append(form[position:start])
        verb, position = _Verb(), start + 1
        while form[position : position + 1] and form[position] in "-+0 #":
            verb.flags += form[position]
            position += 1
        verb.width, position, used = _count(form, position, values, used)
        if verb.width < 0:
            verb.flags, verb.width = verb.flags + "-", -verb.width
        if form[position : position + 1] == ".":
            verb.precision, position, used = _count(form, position + 1, values, used)
        letter = form[position : position + 1]
        position += 1
        if not letter:
            out.append("%!(NOVERB)")
            break
        if letter == "%":
            out.append("%")
        elif used >= len(values):
            out.append(f"%!{letter}(MISSING)")
        else:
            value = values[used]
            used += 1
            out.append(verb.padded(kind(value)) if letter == "T" else verb.apply(letter, value))
    if used < len(values):
        rest = ", ".join("<nil>" if value is None else f"{kind(value)}={text(value)}" for value in values[used:])
        out.append(f"%!(EXTRA {rest})")
    return "".join(out)


def _count(form: str, position: int, values: Sequence[Any], used: int) -> tuple[int, int, int]:
    """A width or precision at `position`: (number, position after it, values used)."""
    if form[position : position + 1] == "*":
        value = values[used] if used < len(values) else 0
        number = value if isinstance(value, int) and abs(value) <= WIDEST else 0
        return number, position + 1, used + 1
    end = position
    while form[end : end + 1].isascii() and form[end : end + 1].isdigit():
        end += 1
    number = int(form[position:end] or "0") if end - position < 6 else 0
    return min(number, WIDEST), end, used
