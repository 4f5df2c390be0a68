"""Go's text/template: source text -> tree of nodes. Runs in the client, for --format.

The language of Go 1.24 with Docker's functions; positions and error texts are those of Go's text/template/parse, as
scripts and people see them behind "template parsing error:". Written by hand: `import re` costs more than all this.
Deliberately absent: define, template and block (a format is one template), complex numbers.
"""

from __future__ import annotations

from tare.cli.gotext import quoted, unquoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container
    from typing import Any, NoReturn

__all__ = ["Block", "Command", "Node", "ParseError", "Pipe", "parse"]

SPACES = " \t\r\n"
TRIMS = tuple("-" + space for space in SPACES)
KEYWORDS = frozenset(("block", "break", "continue", "define", "else", "end", "if", "nil", "range", "template", "with"))
OPERANDS = frozenset(("bool", "number", "dot", "field", "identifier", "nil", "string", "variable", "("))
CONSTANTS = frozenset(("bool", "dot", "nil", "number", "string"))
DEEPEST = 100
"""Nested blocks and parentheses together; a guess, far above what anybody writes."""

Token = tuple[str, str, int]
"""(kind, text, position). Kinds: text, "{{", "}}", space, the node kinds, keyword, one character, error, end."""


class ParseError(Exception):
    """The text after "template: "."""


class Node:
    """kind: text, field, variable, chain, identifier, dot, nil, bool, number, string. `position` counts characters."""

    def __init__(self, kind: str, position: int, text: str, value: Any = None) -> None:
        self.kind = kind
        self.position = position
        self.text = text
        self.value = value
        """Of field, variable and chain the names, of a constant the value, of a chain (node, names)."""

    def __str__(self) -> str:
        if self.kind == "chain":
            node, names = self.value
            inner = f"({node})" if isinstance(node, Pipe) else str(node)
            return inner + "".join("." + name for name in names)
        return self.text


class Command:
    """Operands side by side: a function or method with its arguments, or one value."""

    def __init__(self, position: int, operands: list[Node | Pipe]) -> None:
        self.position = position
        self.operands = operands

    def __str__(self) -> str:
        return " ".join(f"({each})" if isinstance(each, Pipe) else str(each) for each in self.operands)


class Pipe:
    """Commands joined by "|"; its value goes to `variables`, if any (`assigns`: "=" rather than ":=")."""

    kind = "pipe"

    def __init__(self, position: int) -> None:
        self.position = position
        self.variables: list[str] = []
        self.assigns = False
        self.commands: list[Command] = []

    def __str__(self) -> str:
        names = ", ".join(self.variables)
        head = f"{names} {'=' if self.assigns else ':='} " if names else ""
        return head + " | ".join(map(str, self.commands))


class Block:
    """An action: kind "action", "if", "with", "range", "break", "continue", or "else" and "end", which end lists."""

    def __init__(self, kind: str, position: int, pipe: Pipe | None = None) -> None:
        self.kind = kind
        self.position = position
        self.pipe = pipe
        self.body: list[Node | Block] = []
        self.otherwise: list[Node | Block] = []


def _go_character(letter: str) -> str:
    """Go's %#U."""
    shown = f" '{letter}'" if letter.isprintable() else ""
    return f"U+{ord(letter):04X}{shown}"


class _Lexer:
    """All tokens of a template. An error becomes the last token, as in Go, and is told when the parser reaches it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.position = 0
        self.tokens: list[Token] = []
        self.depth = 0

    def run(self) -> list[Token]:
        while True:
            start = self.source.find("{{", self.position)
            text = self.source[self.position :] if start < 0 else self.source[self.position : start]
            trim = start >= 0 and self.source[start + 2 : start + 4] in TRIMS
            if trim:
                text = text.rstrip(SPACES)
            if text:
                self.tokens.append(("text", text, self.position))
            if start < 0:
                self.tokens.append(("end", "", len(self.source)))
                return self.tokens
            self.position = start + (3 if trim else 2)
            if not self._action(start, trim):
                return self.tokens

    def _fail(self, text: str) -> bool:
        self.tokens.append(("error", text, self.position))
        return False

    def _at_end(self) -> int:
        """Length of the right delimiter here, with its trim mark; 0 if there is none."""
        source, position = self.source, self.position
        if source[position : position + 1] in SPACES and source.startswith("-}}", position + 1):
            return 4
        return 2 if source.startswith("}}", position) else 0

    def _leave(self, length: int) -> None:
        self.position += length
        if length == 4:
            while self.source[self.position : self.position + 1] and self.source[self.position] in SPACES:
                self.position += 1

    def _action(self, start: int, trim: bool) -> bool:
        comment = self.position + (1 if trim else 0)
        if self.source.startswith("/*", comment):
            return self._comment(comment)
        self.tokens.append(("{{", "{{", start))
        self.depth = 0
        while True:
            length = self._at_end()
            if length:
                if self.depth:
                    return self._fail("unclosed left paren")
                self.tokens.append(("}}", "}}", self.position))
                self._leave(length)
                return True
            if self.position >= len(self.source):
                return self._fail("unclosed action")
            if not self._token(self.source[self.position]):
                return False

    def _comment(self, start: int) -> bool:
        end = self.source.find("*/", start)
        if end < 0:
            return self._fail("unclosed comment")
        self.position = end + 2
        length = self._at_end()
        if not length:
            return self._fail("comment ends before closing delimiter")
        self._leave(length)
        return True

    def _emit(self, kind: str, end: int) -> bool:
        self.tokens.append((kind, self.source[self.position : end], self.position))
        self.position = end
        return True

    def _token(self, letter: str) -> bool:
        position = self.position
        following = self.source[position + 1 : position + 2]
        if letter in SPACES:
            return self._space()
        if letter in '"`\'':
            return self._quoted(letter)
        if letter == ":":
            return self._emit(":=", position + 2) if following == "=" else self._fail("expected :=")
        if letter == "$" or (letter == "." and not ("0" <= following <= "9" and following)):
            return self._name(position + 1, "variable" if letter == "$" else "field")
        if letter in "+-." or "0" <= letter <= "9":
            return self._number()
        if letter == "_" or letter.isalpha():
            return self._name(position, "identifier")
        if letter == "(":
            self.depth += 1
        elif letter == ")":
            self.depth -= 1
            if self.depth < 0:
                return self._fail("unexpected right paren")
        elif not (letter.isascii() and letter.isprintable()):
            return self._fail("unrecognized character in action: " + _go_character(letter))
        return self._emit(letter, position + 1)

    def _space(self) -> bool:
        end = self.position
        while end < len(self.source) and self.source[end] in SPACES and not self.source.startswith("-}}", end + 1):
            end += 1
        return self._emit("space", end)

    def _quoted(self, quote: str) -> bool:
        end = self.position + 1
        names = {'"': "unterminated quoted string", "`": "unterminated raw quoted string"}
        while end < len(self.source) and self.source[end] != quote:
            if quote != "`" and self.source[end] == "\n":
                end = len(self.source)
                break
            end += 2 if self.source[end] == "\\" and quote != "`" else 1
        if end >= len(self.source):
            return self._fail(names.get(quote, "unterminated character constant"))
        return self._emit("number" if quote == "'" else "string", end + 1)

    def _word_end(self, end: int) -> int:
        while end < len(self.source) and (self.source[end] == "_" or self.source[end].isalnum()):
            end += 1
        return end

    def _terminated(self, end: int) -> bool:
        """Whether a name may end here."""
        return end >= len(self.source) or self.source[end] in SPACES + ".,|:)(" or self.source.startswith("}}", end)

    def _name(self, start: int, kind: str) -> bool:
        end = self._word_end(start)
        if not self._terminated(end):
            return self._fail("bad character " + _go_character(self.source[end]))
        word = self.source[start:end]
        if kind == "field" and not word:
            kind = "dot"
        elif kind == "identifier" and word in KEYWORDS:
            kind = "nil" if word == "nil" else "keyword"
        elif kind == "identifier" and word in ("true", "false"):
            kind = "bool"
        return self._emit(kind, end)

    def _number(self) -> bool:
        end = self.position + (self.source[self.position] in "+-")
        while end < len(self.source) and (self.source[end] in "._" or self.source[end].isalnum()):
            end += 1
            hexadecimal = self.source.startswith(("0x", "0X"), self.position)
            if self.source[end - 1] in ("pP" if hexadecimal else "eE") and self.source[end : end + 1] in ("+", "-"):
                end += 1
        try:
            _constant(self.source[self.position : end])
        except ValueError:
            return self._fail("bad number syntax: " + quoted(self.source[self.position : end]))
        return self._emit("number", end)


def _constant(text: str) -> int | float:
    """A number or a character constant of Go. Raises ValueError."""
    if text[0] == "'":
        letter = unquoted(text)
        if len(letter) != 1:
            raise ValueError(text)
        return ord(letter)
    if not text.isascii() or len(text) > 64:
        raise ValueError(text)
    digits = text.lstrip("+-").replace("_", "")
    if digits.isdigit() and digits[0] == "0":
        number = int(digits, 8)
        return -number if text[0] == "-" else number
    try:
        return int(text, 0)
    except ValueError:
        if digits[:1].isalpha():
            raise
        return float.fromhex(text) if digits[:2] in ("0x", "0X") else float(text)


class _Parser:
    def __init__(self, name: str, source: str, functions: Container[str]) -> None:
        self.name = name
        self.source = source
        self.functions = functions
        self.tokens = _Lexer(source).run()
        self.next = 0
        self.variables = ["$"]
        self.depth = 0
        self.ranges = 0

    def fail(self, text: str) -> NoReturn:
        position = self.tokens[min(self.next, len(self.tokens) - 1)][2]
        line = 1 + self.source.count("\n", 0, position)
        raise ParseError(f"{self.name}:{line}: {text}")

    def unexpected(self, token: Token, context: str) -> NoReturn:
        kind, text, _position = token
        if kind == "error":
            self.fail(text)
        shown = "EOF" if kind == "end" else f"<{text}>" if kind == "keyword" else quoted(text[:10])
        if kind not in ("end", "keyword") and len(text) > 10:
            shown += "..."
        self.fail(f"unexpected {shown} in {context}")

    def peek(self, *, spaces: bool = False) -> Token:
        while not spaces and self.tokens[self.next][0] == "space":
            self.next += 1
        return self.tokens[self.next]

    def take(self, *, spaces: bool = False) -> Token:
        token = self.peek(spaces=spaces)
        if token[0] not in ("end", "error"):
            self.next += 1
        return token

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            self.fail("nested too deeply")

    def top(self) -> list[Node | Block]:
        nodes: list[Node | Block] = []
        while self.tokens[self.next][0] != "end":
            node = self._node()
            if isinstance(node, Block) and node.kind in ("else", "end"):
                self.fail("unexpected {{" + node.kind + "}}")
            nodes.append(node)
        return nodes

    def _list(self) -> tuple[list[Node | Block], Block]:
        """Nodes up to an {{else}} or {{end}}, and that one."""
        nodes: list[Node | Block] = []
        while True:
            if self.tokens[self.next][0] == "end":
                self.fail("unexpected EOF")
            node = self._node()
            if isinstance(node, Block) and node.kind in ("else", "end"):
                return nodes, node
            nodes.append(node)

    def _node(self) -> Node | Block:
        token = self.take(spaces=True)
        if token[0] == "text":
            return Node("text", token[2], token[1])
        if token[0] != "{{":
            self.unexpected(token, "input")
        kind, word, position = self.peek()
        if kind != "keyword":
            return Block("action", position, self._pipe("command", "}}"))
        self.take()
        if word in ("if", "with", "range"):
            return self._control(word, position)
        if word in ("break", "continue"):
            if not self.ranges:
                self.fail(f"{{{{{word}}}}} outside {{{{range}}}}")
            self._close(word)
        elif word == "end":
            self._close("end")
        elif word == "else":
            following = self.peek()
            if following[1] not in ("if", "with") or following[0] != "keyword":
                self._close("else")
        else:
            self.fail(f"{{{{{word}}}}} is not offered in a format")
        return Block(word, position)

    def _close(self, word: str) -> None:
        token = self.take()
        if token[0] != "}}":
            self.unexpected(token, "{{" + word + "}}" if word in ("break", "continue") else word)

    def _control(self, word: str, position: int) -> Block:
        self.deeper()
        mark = len(self.variables)
        block = Block(word, position, self._pipe(word, "}}"))
        self.ranges += word == "range"
        block.body, ending = self._list()
        self.ranges -= word == "range"
        if ending.kind == "else":
            following = self.peek()
            if following[0] == "keyword":
                if following[1] != word:
                    self.unexpected(following, "else")
                self.take()
                block.otherwise = [self._control(word, following[2])]
            else:
                block.otherwise, ending = self._list()
                if ending.kind != "end":
                    self.fail("expected end; found {{else}}")
        del self.variables[mark:]
        self.depth -= 1
        return block

    def _pipe(self, context: str, end: str) -> Pipe:
        self.deeper()
        pipe = Pipe(self.peek()[2])
        self._declarations(pipe, context)
        while True:
            token = self.peek()
            if token[0] == end:
                self.take()
                break
            if token[0] not in OPERANDS:
                self.unexpected(token, context)
            pipe.commands.append(self._command())
        if not pipe.commands:
            self.fail(f"missing value for {context}")
        for number, command in enumerate(pipe.commands[1:], 2):
            if command.operands[0].kind in CONSTANTS:
                self.fail(f"non executable command in pipeline stage {number}")
        self.depth -= 1
        return pipe

    def _declarations(self, pipe: Pipe, context: str) -> None:
        while True:
            start = self.next
            token = self.peek()
            if token[0] != "variable":
                return
            self.take()
            following = self.peek()[0]
            if following in (":=", "="):
                self.take()
                pipe.assigns = following == "="
                if pipe.assigns and token[1] not in self.variables:
                    self.fail(f'undefined variable "{token[1]}"')
                pipe.variables.append(token[1])
                self.variables.append(token[1])
                return
            if following != ",":
                self.next = start
                return
            self.take()
            pipe.variables.append(token[1])
            self.variables.append(token[1])
            if context != "range" or len(pipe.variables) > 1:
                self.fail(f"too many declarations in {context}")
            if self.peek()[0] not in ("variable", "}}", ")"):
                self.fail("range can only initialize variables")

    def _command(self) -> Command:
        command = Command(self.peek()[2], [])
        while True:
            self.peek()
            operand = self._operand()
            if operand is not None:
                command.operands.append(operand)
            token = self.peek(spaces=True)
            if token[0] == "space":
                self.take(spaces=True)
                continue
            if token[0] == "|":
                self.take()
            elif token[0] not in ("}}", ")"):
                self.unexpected(token, "operand")
            break
        if not command.operands:
            self.fail("empty command")
        return command

    def _operand(self) -> Node | Pipe | None:
        node = self._term()
        token = self.peek(spaces=True)
        if node is None or token[0] != "field":
            return node
        names = []
        while self.peek(spaces=True)[0] == "field":
            names.append(self.take(spaces=True)[1][1:])
        if node.kind in CONSTANTS:
            self.fail(f"unexpected . after term {quoted(str(node))}")
        # Go gives a field of fields the position of its second part.
        if isinstance(node, Node) and node.kind in ("field", "variable"):
            text = node.text + "".join("." + name for name in names)
            return Node(node.kind, token[2], text, node.value + names)
        return Node("chain", token[2], "", (node, names))

    def _term(self) -> Node | Pipe | None:
        kind, text, position = self.peek()
        if kind not in OPERANDS:
            return None
        self.take()
        if kind == "(":
            return self._pipe("parenthesized pipeline", ")")
        value: Any = None
        if kind == "identifier" and text not in self.functions:
            self.fail(f'function "{text}" not defined')
        elif kind == "variable":
            if text not in self.variables:
                self.fail(f'undefined variable "{text}"')
            value = [text]
        elif kind == "field":
            value = [text[1:]]
        elif kind == "bool":
            value = text == "true"
        elif kind == "number":
            try:
                value = _constant(text)
            except ValueError:
                self.fail(f"malformed character constant: {text}")
        elif kind == "string":
            try:
                value = unquoted(text)
            except ValueError:
                self.fail("invalid syntax")
        return Node(kind, position, text, value)


def parse(source: str, functions: Container[str], name: str = "") -> list[Node | Block]:
    """The template's nodes. Raises ParseError, whose text is Go's: "template: :1: unclosed action"."""
    return _Parser(f"template: {name}", source, functions).top()
