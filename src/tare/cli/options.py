"""Flags in the manner of pflag (the Go library of Docker's client): tables as data, one pass, no objects per flag.

    --name value   --name=value   --rm   --rm=false   -p 80   -p80   -p=80   -it   --   stop at the first word or not

A row is (long, short, type, default as shown, help); help "" hides it. The type is pflag's word and says how a value
is read: "bool", "int", "int64", "uint16", "uint64", one of MANY (may be given again, collects a list), anything else
a string. `checks` of a Command turn the text of single flags into values and raise ValueError with Docker's words.
Deliberately absent: help text (helptext.py writes it when it is asked for), abbreviations of long names.
"""

from __future__ import annotations

from tare.cli.failure import Failure, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    Row = tuple[str, str, str, str, str]

__all__ = ["Command", "Flags", "integer", "parse", "quoted", "unsigned"]

MANY = frozenset(("list", "map", "ulimit", "mount", "network", "gpu-request", "filter"))
TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))
FALSE = frozenset(("0", "f", "F", "FALSE", "false", "False"))


class Command:
    """What one command takes: the words after its name, its flags, how many words (`most` -1 = any number)."""

    def __init__(
        self,
        usage: str,
        rows: Sequence[Row] = (),
        *,
        least: int = 0,
        most: int = -1,
        interspersed: bool = True,
        aliases: str = "",
        checks: Mapping[str, Callable[[str], Any]] | None = None,
        deprecated: Mapping[str, str] | None = None,
    ) -> None:
        self.usage = usage
        self.rows = rows
        self.least = least
        self.most = most
        self.interspersed = interspersed
        self.aliases = aliases
        self.checks = checks or {}
        self.deprecated = deprecated or {}


class Flags:
    """The outcome: `words` are the positional ones; a flag that was not given has its type's zero value."""

    def __init__(self, values: dict[str, Any], words: list[str]) -> None:
        self.values = values
        self.words = words

    def given(self, name: str) -> bool:
        return name in self.values

    def on(self, name: str) -> bool:
        return bool(self.values.get(name, False))

    def text(self, name: str, default: str = "") -> str:
        return str(self.values.get(name, default))

    def number(self, name: str, default: int = 0) -> int:
        return int(self.values.get(name, default))

    def many(self, name: str) -> list[Any]:
        return list(self.values.get(name, ()))


def quoted(text: str) -> str:
    """Go's %q for what can stand on a command line."""
    out = []
    for letter in text:
        if letter in '"\\':
            out.append("\\" + letter)
        elif letter == "\n":
            out.append("\\n")
        elif letter == "\t":
            out.append("\\t")
        elif letter < " " or letter == "\x7f":
            out.append(f"\\x{ord(letter):02x}")
        else:
            out.append(letter)
    return '"' + "".join(out) + '"'


def _whole(text: str, function: str, lowest: int, highest: int) -> int:
    """strconv.ParseInt/ParseUint with base 0: 0x, 0o, 0b and a plain leading 0 (octal) are understood."""
    body = text[1:] if lowest < 0 and text[:1] in "+-" else text
    try:
        if not body.isascii() or not body[:1].isdigit() or not body[-1].isalnum() or len(body) > 64:
            raise ValueError
        number = int(body, 8) if body[0] == "0" and body.replace("_", "").isdigit() else int(body, 0)
    except ValueError:
        raise ValueError(f"strconv.{function}: parsing {quoted(text)}: invalid syntax") from None
    if text[0] == "-":
        number = -number
    if not lowest <= number <= highest:
        raise ValueError(f"strconv.{function}: parsing {quoted(text)}: value out of range")
    return number


def integer(text: str) -> int:
    """A signed 64-bit number as Go reads it."""
    return _whole(text, "ParseInt", -(1 << 63), (1 << 63) - 1)


def unsigned(text: str, bits: int = 64) -> int:
    """An unsigned number of `bits` as Go reads it."""
    return _whole(text, "ParseUint", 0, (1 << bits) - 1)


def _boolean(text: str) -> bool:
    if text in TRUE:
        return True
    if text in FALSE:
        return False
    raise ValueError(f"strconv.ParseBool: parsing {quoted(text)}: invalid syntax")


def _value(kind: str, text: str) -> Any:
    if kind == "bool":
        return _boolean(text)
    if kind in ("int", "int64"):
        return integer(text)
    if kind in ("uint16", "uint64", "uint"):
        return unsigned(text, 16 if kind == "uint16" else 64)
    return text


class _Pass:
    """One walk over the words of one command."""

    def __init__(self, command: Command, argv: Sequence[str]) -> None:
        self.command = command
        self.argv = argv
        self.position = 0
        self.long: dict[str, Row] = {}
        self.short: dict[str, Row] = {}
        for row in command.rows:
            self.long[row[0]] = row
            if row[1]:
                self.short[row[1]] = row
        self.help: Row = ("help", "", "bool", "", "Print usage")
        self.long.setdefault("help", self.help)
        self.values: dict[str, Any] = {}
        self.words: list[str] = []
        self.notes: list[str] = []

    def walk(self) -> None:
        while self.position < len(self.argv):
            word = self.argv[self.position]
            self.position += 1
            if word == "--":
                self.words.extend(self.argv[self.position :])
                return
            if len(word) < 2 or word[0] != "-":
                self.words.append(word)
                if not self.command.interspersed:
                    self.words.extend(self.argv[self.position :])
                    return
            elif word[1] == "-":
                self._long(word)
            else:
                self._short(word[1:])

    def _next(self) -> str | None:
        if self.position >= len(self.argv):
            return None
        self.position += 1
        return self.argv[self.position - 1]

    def _long(self, word: str) -> None:
        name, equals, text = word[2:].partition("=")
        if not name or name[0] == "-":
            raise UsageError(f"bad flag syntax: {word}")
        row = self.long.get(name)
        if row is None:
            raise UsageError(f"unknown flag: --{name}")
        if not equals:
            following = "true" if row[2] == "bool" else self._next()
            if following is None:
                raise UsageError(f"flag needs an argument: --{name}")
            text = following
        self._set(row, text)

    def _short(self, letters: str) -> None:
        while letters:
            row = self.short.get(letters[0])
            if row is None and letters[0] == "h":
                self.notes.append("Flag shorthand -h has been deprecated, use --help")
                row = self.help
            if row is None:
                raise UsageError(f"unknown shorthand flag: '{letters[0]}' in -{letters}")
            rest = letters[1:]
            if len(rest) > 1 and rest[0] == "=":
                text, rest = rest[1:], ""
            elif row[2] == "bool":
                text = "true"
            elif rest:
                text, rest = rest, ""
            else:
                following = self._next()
                if following is None:
                    raise UsageError(f"flag needs an argument: '{letters[0]}' in -{letters}")
                text = following
            self._set(row, text)
            letters = rest

    def _set(self, row: Row, text: str) -> None:
        name, short, kind = row[:3]
        try:
            check = self.command.checks.get(name)
            value = check(text) if check is not None else _value(kind, text)
        except ValueError as error:
            flag = f"-{short}, --{name}" if short else f"--{name}"
            raise UsageError(f"invalid argument {quoted(text)} for {quoted(flag)} flag: {error}") from None
        if kind in MANY:
            self.values.setdefault(name, []).append(value)
        else:
            self.values[name] = value
        if name in self.command.deprecated:
            self.notes.append(f"Flag --{name} has been deprecated, {self.command.deprecated[name]}")


def _ending(path: str, usage: str, verb: str = "Run") -> str:
    return f"\n\nUsage:  {path} {usage}".rstrip() + f"\n\n{verb} '{path} --help' for more information"


def _arguments(count: int) -> str:
    return f"{count} argument" if count == 1 else f"{count} arguments"


def _count(command: Command, path: str, words: Sequence[str]) -> None:
    """Texts of docker/cli cli/required.go; "See" stands only where a least number is asked for."""
    least, most = command.least, command.most
    verb = "Run"
    if most == 0 and words:
        wanted = "accepts no arguments"
    elif least == most and len(words) != least:
        wanted = f"requires {_arguments(least)}"
    elif len(words) < least:
        wanted, verb = f"requires at least {_arguments(least)}", "See" if most < 0 else "Run"
        if most >= 0:
            wanted += f" and at most {_arguments(most)}"
    elif 0 <= most < len(words):
        wanted = f"requires at most {_arguments(most)}"
    else:
        return
    raise Failure(f"tare: '{path}' {wanted}" + _ending(path, command.usage, verb))


def parse(command: Command, path: str, argv: Sequence[str]) -> tuple[Flags, list[str]]:
    """Read the words after `path` ("tare run"). Returns the flags and notes for stderr (deprecated flags).

    `flags.on("help")` is set when --help was among them; then the number of words is not checked.
    Raises UsageError (125) for a flag, Failure (1) for a wrong number of words, both with Docker's texts.
    """
    walk = _Pass(command, argv)
    try:
        walk.walk()
    except UsageError as error:
        raise UsageError(str(error) + _ending(path, command.usage)) from None
    flags = Flags(walk.values, walk.words)
    if not flags.on("help"):
        _count(command, path, walk.words)
    return flags, walk.notes
