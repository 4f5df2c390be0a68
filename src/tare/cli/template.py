"""Go's text/template: running a parsed template over values, with the functions Docker gives to --format.

    Template('{{json .Mounts}}').render(value)      TemplateError: "template: :1:2: executing ..."

Values: bool, int, float, str, list, dict (a map), None (nil), and those of gotypes.py. Runs in the client; values are
foreign data, a template is the user's own.
"""

from __future__ import annotations

from tare.cli.gojson import encode
from tare.cli.gotext import kind, quoted, sprint, sprintf, sprintln, text
from tare.cli.gotypes import MISSING, Nil, Record
from tare.cli.templateparse import Block, Command, Node, ParseError, Pipe, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

__all__ = ["FUNCTIONS", "Template", "TemplateError", "UnknownField"]


class TemplateError(Exception):
    """Go's words: "template: :1: unclosed action" or "template: :1:2: executing "" at <.X>: ...".

    `partial` is what was written before.
    """

    partial = ""


class UnknownField(TemplateError):
    """A field or method that its value's type does not have, or not with these arguments."""


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


def truth(value: Any) -> bool:
    """What `if` sees."""
    return value is not MISSING and not isinstance(value, Nil) and (isinstance(value, Record) or bool(value))


def _basic(value: Any) -> str:
    return kind(value) if isinstance(value, str | int | float) else ""


def _equal(*values: Any) -> bool:
    if len(values) < 2:
        raise ValueError("missing argument for comparison")
    first = values[0]
    for other in values[1:]:
        empty = [each is None or each is MISSING or isinstance(each, Nil) for each in (first, other)]
        if any(empty):
            if all(empty):
                return True
        elif not _basic(first) and not _basic(other):
            raise ValueError(f"non-comparable type {text(first)}: {kind(first)}")
        elif _basic(first) != _basic(other):
            raise ValueError("incompatible types for comparison")
        elif first == other:
            return True
    return False


def _less(left: Any, right: Any) -> bool:
    if _basic(left) in ("", "bool") or not _basic(right):
        raise ValueError("invalid type for comparison")
    if _basic(left) != _basic(right):
        raise ValueError("incompatible types for comparison")
    return bool(left < right)


def _position(number: Any, length: int) -> int:
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError(f"cannot index slice/array with {'nil' if number is None else f'type {kind(number)}'}")
    if not 0 <= number <= length:
        raise ValueError(f"index out of range: {number}")
    return number


def _index(value: Any, *keys: Any) -> Any:
    if value is None or value is MISSING:
        raise ValueError("index of untyped nil")
    for key in keys:
        if isinstance(value, Nil) and value.shown == "<nil>":
            raise ValueError("index of nil pointer")
        if isinstance(value, list | Nil | str) and not (isinstance(value, Nil) and value.shown == "map[]"):
            row: Any = [] if isinstance(value, Nil) else value
            if isinstance(value, str):
                row = value.encode("utf-8", "surrogateescape")
            place = _position(key, len(row))
            if place == len(row):
                raise ValueError(f"reflect: {'string' if isinstance(value, str) else 'slice'} index out of range")
            value = row[place]
        elif isinstance(value, dict | Nil):
            keyed = getattr(value, "keyed", False)
            if not isinstance(key, str) or keyed:
                raise ValueError(f"value has type {kind(key)}; should be {'nat.Port' if keyed else 'string'}")
            value = value.get(key, getattr(value, "zero", None)) if isinstance(value, dict) else None
        else:
            raise ValueError(f"can't index item of type {kind(value)}" if value is not None else "index of untyped nil")
    return value


def _slice(value: Any, *bounds: Any) -> Any:
    if value is None or value is MISSING:
        raise ValueError("slice of untyped nil")
    if len(bounds) > 3:
        raise ValueError(f"too many slice indexes: {len(bounds)}")
    if isinstance(value, Nil):
        value = []
    if not isinstance(value, str | list):
        raise ValueError(f"can't slice item of type {kind(value)}")
    if isinstance(value, str) and len(bounds) == 3:
        raise ValueError("cannot 3-index slice a string")
    ends = [_position(each, len(value)) for each in bounds]
    start, end = [*ends, *(0, len(value))[len(ends) :]][:2]
    if start > end:
        raise ValueError(f"invalid slice index: {start} > {end}")
    return value[start:end]


def _length(value: Any) -> int:
    if value is None or value is MISSING:
        raise ValueError("len of nil pointer")
    if isinstance(value, Nil) and value.shown != "<nil>":
        return 0
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogateescape"))
    if not isinstance(value, list | dict):
        raise ValueError(f"len of type {kind(value)}")
    return len(value)


def _title(value: str) -> str:
    return "".join(
        letter.upper() if index == 0 or not (value[index - 1].isalnum() or value[index - 1] in "_'") else letter
        for index, letter in enumerate(value)
    )


def _pad(value: str, before: int, after: int) -> str:
    return " " * before + value + " " * after if value else value


def _join(parts: list[Any] | Nil, separator: str) -> str:
    return separator.join(map(text, parts)) if isinstance(parts, list) else ""


FUNCTIONS: dict[str, tuple[str, Callable[..., Any]]] = {
    "and": ("*+", lambda *values: values),
    "or": ("*+", lambda *values: values),
    "not": ("*", lambda value: not truth(value)),
    "eq": ("*+", _equal),
    "ne": ("**", lambda left, right: not _equal(left, right)),
    "lt": ("**", _less),
    "le": ("**", lambda left, right: _less(left, right) or _equal(left, right)),
    "gt": ("**", lambda left, right: not (_less(left, right) or _equal(left, right))),
    "ge": ("**", lambda left, right: not _less(left, right)),
    "index": ("*+", _index),
    "slice": ("*+", _slice),
    "len": ("*", _length),
    "print": ("+", lambda *values: sprint(values)),
    "printf": ("s+", lambda form, *values: sprintf(form, values)),
    "println": ("+", lambda *values: sprintln(values)),
    "json": ("*", encode),
    "split": ("ss", lambda value, separator: value.split(separator) if separator else list(value)),
    "join": ("ls", _join),
    "title": ("s", _title),
    "lower": ("s", str.lower),
    "upper": ("s", str.upper),
    "pad": ("sii", _pad),
    "truncate": ("si", lambda value, length: value[:length]),
}
"""Name -> (types of the arguments, function): "*" any, "s" string, "i" int, "l" list, a last "+" any number more."""
WANTED = {"s": (str, "string"), "i": (int, "int"), "l": (list, "[]string")}
HEADER = dict.fromkeys(("json", "title", "lower", "upper"), ("*", lambda value: value)) | dict.fromkeys(
    ("split", "join", "truncate"), ("**", lambda value, _argument: value)
)


class Template:
    """A parsed template. `name` is what Go calls it in error texts. Raises TemplateError."""

    def __init__(self, source: str, name: str = "") -> None:
        self.source = source
        self.name = name
        try:
            self.nodes = parse(source, FUNCTIONS, name)
        except ParseError as error:
            raise TemplateError(str(error)) from None

    def render(self, value: Any, *, strict: bool = False) -> str:
        """The output for `value`. `strict`: a map without the key is an error (missingkey=error). TemplateError."""
        run = _Run(self, FUNCTIONS, strict=strict)
        try:
            run.walk(self.nodes, value, value)
        except TemplateError as error:
            error.partial = "".join(run.out)
            raise
        return "".join(run.out)

    def header(self, titles: Mapping[str, str] | Record) -> str:
        """A table's first line: functions that would change a value leave a title as it is. Errors end it, silently."""
        run = _Run(self, FUNCTIONS | HEADER, strict=False)
        try:
            run.walk(self.nodes, titles, titles)
        except TemplateError:
            pass
        return "".join(run.out)


class _Run:
    """One rendering. Variables are a stack of (name, value), as blocks open and close."""

    def __init__(
        self, template: Template, functions: Mapping[str, tuple[str, Callable[..., Any]]], *, strict: bool
    ) -> None:
        self.template = template
        self.functions = functions
        self.strict = strict
        self.out: list[str] = []
        self.last: Node | Pipe | None = None
        self.variables: list[tuple[str, Any]] = []

    def fail(self, node: Node | Command | Pipe, message: str, error: type[TemplateError] = TemplateError) -> NoReturn:
        if isinstance(node, Node) and node.kind == "chain" and self.last is not None:
            # Go names what it looked at last, which is never the chain itself.
            node = self.last
        before = self.template.source[: node.position]
        column = len(before[before.rfind("\n") + 1 :].encode())
        name = self.template.name
        raise error(
            f"template: {name}:{1 + before.count(chr(10))}:{column}: executing {quoted(name)} at <{node}>: {message}"
        )

    def walk(self, nodes: Sequence[Node | Block], dot: Any, root: Any) -> None:
        if not self.variables:
            self.variables.append(("$", root))
        for node in nodes:
            if isinstance(node, Node):
                self.out.append(node.text)
            elif node.kind == "action":
                assert node.pipe is not None
                value = self._pipe(node.pipe, dot)
                if not node.pipe.variables:
                    self.out.append("<no value>" if value is None else text(value))
            elif node.kind == "break":
                raise _Break
            elif node.kind == "continue":
                raise _Continue
            else:
                mark = len(self.variables)
                self._block(node, dot)
                del self.variables[mark:]

    def _block(self, block: Block, dot: Any) -> None:
        assert block.pipe is not None
        if block.kind == "range":
            self._range(block, dot)
            return
        value = self._pipe(block.pipe, dot)
        if truth(value):
            self.walk(block.body, value if block.kind == "with" else dot, dot)
        else:
            self.walk(block.otherwise, dot, dot)

    def _range(self, block: Block, dot: Any) -> None:
        pipe = block.pipe
        assert pipe is not None
        value = self._pipe(pipe, dot, bind=False)
        if isinstance(value, dict):
            pairs: list[tuple[Any, Any]] = [(key, value[key]) for key in sorted(value)]
        elif isinstance(value, list):
            pairs = list(enumerate(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            pairs = [(number, number) for number in range(value)]
        elif value is None or value is MISSING or isinstance(value, Nil):
            pairs = []
        else:
            self.fail(pipe, f"range can't iterate over {text(value)}")
        mark = len(self.variables)
        for key, element in pairs:
            shown = (element,) if len(pipe.variables) == 1 else (key, element)
            for name, part in zip(pipe.variables, shown, strict=False):
                self._set(name, part, assigns=pipe.assigns)
            try:
                self.walk(block.body, element, dot)
            except _Continue:
                pass
            except _Break:
                break
            finally:
                del self.variables[mark:]
        if not pairs:
            self.walk(block.otherwise, dot, dot)

    def _set(self, name: str, value: Any, *, assigns: bool) -> None:
        if assigns:
            for index in range(len(self.variables) - 1, -1, -1):
                if self.variables[index][0] == name:
                    self.variables[index] = (name, value)
                    return
        self.variables.append((name, value))

    def _pipe(self, pipe: Pipe, dot: Any, *, bind: bool = True) -> Any:
        final: tuple[Any, ...] = ()
        for command in pipe.commands:
            final = (self._command(command, dot, final),)
        if bind:
            for name in pipe.variables:
                self._set(name, final[0], assigns=pipe.assigns)
        return final[0]

    def _command(self, command: Command, dot: Any, final: tuple[Any, ...]) -> Any:
        first = command.operands[0]
        arguments = command.operands[1:]
        if isinstance(first, Node):
            if first.kind == "field":
                return self._fields(first, dot, first.value, dot, arguments, final)
            if first.kind == "chain":
                start = self._operand(first.value[0], dot)
                return self._fields(first, start, first.value[1], dot, arguments, final)
            if first.kind == "variable" and len(first.value) > 1:
                return self._fields(first, self._variable(first.value[0]), first.value[1:], dot, arguments, final)
            if first.kind == "identifier":
                return self._call(command, first, dot, final)
        if arguments or final:
            self.fail(first, f"can't give argument to non-function {first}")
        if isinstance(first, Node) and first.kind == "nil":
            self.fail(first, "nil is not a command")
        return self._operand(first, dot)

    def _operand(self, node: Node | Pipe, dot: Any) -> Any:
        """The value of an argument."""
        if not isinstance(node, Pipe) and node.kind != "chain":
            self.last = node
        if isinstance(node, Pipe):
            return self._pipe(node, dot)
        if node.kind == "dot":
            return dot
        if node.kind == "field":
            return self._fields(node, dot, node.value, dot, [], ())
        if node.kind == "variable":
            return self._fields(node, self._variable(node.value[0]), node.value[1:], dot, [], ())
        if node.kind == "chain":
            return self._fields(node, self._operand(node.value[0], dot), node.value[1], dot, [], ())
        if node.kind == "identifier":
            return self._call(Command(node.position, [node]), node, dot, ())
        return node.value

    def _variable(self, name: str) -> Any:
        return next(value for known, value in reversed(self.variables) if known == name)

    def _fields(
        self,
        node: Node,
        value: Any,
        names: Sequence[str],
        dot: Any,
        arguments: Sequence[Node | Pipe],
        final: tuple[Any, ...],
    ) -> Any:
        for name in names[:-1]:
            value = self._field(node, value, name, ())
        if not names:
            return value
        if isinstance(value, Record) and (method := value.method(names[-1])) is not None:
            given = [self._operand(each, dot) for each in arguments] + list(final)
            try:
                return method(*given)
            except TypeError:
                wrong = f"wrong number of args for {names[-1]}: want 1 got {len(given)}"
                self.fail(node, wrong, UnknownField)
        return self._field(node, value, names[-1], (*arguments, *final))

    def _field(self, node: Node, value: Any, name: str, arguments: Sequence[Any]) -> Any:
        if value is MISSING:
            if self.strict:
                self.fail(node, f"nil data; no entry for key {quoted(name)}")
            return MISSING
        if value is None:
            self.fail(node, f"nil pointer evaluating interface {{}}.{name}")
        if isinstance(value, Nil) and value.shown == "<nil>":
            self.fail(node, f"nil pointer evaluating {value.go_type}.{name}")
        if isinstance(value, dict) and not getattr(value, "keyed", False):
            if arguments:
                self.fail(node, f"{name} is not a method but has arguments")
            if name not in value and self.strict:
                self.fail(node, f"map has no entry for key {quoted(name)}")
            return value.get(name, MISSING)
        if isinstance(value, Nil) and value.shown == "map[]":
            return MISSING
        try:
            found = value.field(name)
        except (AttributeError, KeyError):
            # What is no struct came out of a map of anything.
            shown = value.go_type if isinstance(value, Record) else "interface {}"
            self.fail(node, f"can't evaluate field {name} in type {shown}", UnknownField)
        if arguments:
            self.fail(node, f"{name} has arguments but cannot be invoked as function")
        return found

    def _call(self, command: Command, node: Node, dot: Any, final: tuple[Any, ...]) -> Any:
        name = node.text
        types, function = self.functions[name]
        count = len(command.operands) - 1 + len(final)
        least = len(types.rstrip("+"))
        if types.endswith("+"):
            if count < least:
                self.fail(node, f"wrong number of args for {name}: want at least {least} got {count - len(final)}")
            types = types[:-1] + "*" * (count - least)
        elif count != least:
            self.fail(node, f"wrong number of args for {name}: want {least} got {count}")
        if name in ("and", "or"):
            return self._decide(name, command, dot, final)
        values = [self._operand(each, dot) for each in command.operands[1:]] + list(final)
        for wanted, value, place in zip(types, values, [*command.operands[1:], node], strict=False):
            if wanted != "*":
                self._check(place, WANTED[wanted], value)
        try:
            found = function(*values)
        except ValueError as error:
            self.fail(command, f"error calling {name}: {error}")
        return MISSING if found is None else found

    def _check(self, node: Node | Pipe, wanted: tuple[type, str], value: Any) -> None:
        python, name = wanted
        if isinstance(node, Node) and node.kind in ("bool", "number", "string") and not isinstance(value, python):
            self.fail(node, f"expected {'integer' if python is int else name}; found {node}")
        if value is None or value is MISSING:
            self.fail(node, f"invalid value; expected {name}")
        if isinstance(value, Nil) and python is list:
            return
        if not isinstance(value, python) or isinstance(value, bool):
            self.fail(node, f"wrong type for value; expected {name}; got {kind(value)}")

    def _decide(self, name: str, command: Command, dot: Any, final: tuple[Any, ...]) -> Any:
        """and, or: the first value that decides, else the last; what stands after it is not evaluated."""
        value: Any = None
        for operand in command.operands[1:]:
            value = self._operand(operand, dot)
            if truth(value) == (name == "or"):
                return value
        return final[0] if final else value
