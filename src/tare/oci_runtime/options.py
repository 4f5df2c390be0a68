"""Flags by runc's spelling, in any place before the container's command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .record import Failed

__all__ = ["Options"]


class Options:
    """Flags of one verb by runc's spelling, in any place before the container's command."""

    def __init__(
        self, arguments: Sequence[str], valued: Mapping[str, str], plain: Mapping[str, str], stop: int
    ) -> None:
        self.values: dict[str, list[str]] = {}
        self.words: list[str] = []
        rest = list(arguments)
        while rest:
            word = rest.pop(0)
            if len(self.words) >= stop or word == "--":
                self.words += rest if word == "--" else [word, *rest]
                break
            if not word.startswith("-") or word == "-":
                self.words.append(word)
                continue
            flag, equals, value = word.partition("=")
            name = flag.lstrip("-")
            if name in plain:
                if not equals or value in ("true", "1"):
                    self.values[plain[name]] = ["true"]
            elif name in valued:
                if not equals and not rest:
                    raise Failed(f"flag needs an argument: {flag}")
                self.values.setdefault(valued[name], []).append(value if equals else rest.pop(0))
            else:
                raise Failed(f"unknown flag: {flag}")

    def get(self, name: str, default: str = "") -> str:
        return self.values.get(name, [default])[-1]

    def has(self, name: str) -> bool:
        return name in self.values

    def one(self) -> str:
        if len(self.words) != 1:
            raise Failed("exactly one container id is needed")
        return self.words[0]


