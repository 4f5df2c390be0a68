"""Finds the handler of a request: version prefix, then method and path. Pure: no I/O.

Patterns: "/containers/{id}/json" ({id} is one segment), "/images/{name:path}/json" ({name} may hold "/" and ":").
A literal path wins over patterns; among patterns the first added wins. Every path is also served under /v<api>.
"""

from __future__ import annotations

import re

from tare.errors import Invalid
from tare.http.message import Answer, Handler, Request, json_response

__all__ = ["Router"]

_VERSION = re.compile(r"/v([0-9.]{1,16})(/.*)", re.DOTALL)
_PARAMETER = re.compile(r"\{([a-z_]+)(:path)?\}")


class Router:
    """The table of routes plus the range of API versions it serves.

    `headers` go with every answer: `server` as Server, `maximum` as Api-Version, Ostype linux.
    """

    def __init__(self, *, minimum: str = "1.24", maximum: str = "1.47", server: str = "Docker (linux)") -> None:
        self.minimum = minimum
        self.maximum = maximum
        self.headers = {"Api-Version": maximum, "Ostype": "linux", "Server": server}
        self._range = (_version(minimum), _version(maximum))
        self._literal: dict[str, dict[str, Handler]] = {}
        self._patterns: dict[str, list[tuple[re.Pattern[str], str, Handler]]] = {}
        """First segment -> (whole path, method, handler) in the order of `add`."""

    def add(self, method: str, pattern: str, handler: Handler) -> None:
        """One route. ValueError for a pattern that does not start with "/", or a literal route given twice."""
        if not pattern.startswith("/"):
            raise ValueError(f"pattern {pattern!r} does not start with /")
        if "{" not in pattern:
            methods = self._literal.setdefault(pattern, {})
            if method in methods:
                raise ValueError(f"{method} {pattern} is routed twice")
            methods[method] = handler
            return
        first = pattern.split("/", 2)[1]
        if "{" in first:
            raise ValueError(f"pattern {pattern!r}: the first segment must be literal")
        self._patterns.setdefault(first, []).append((_compile(pattern), method, handler))

    def match(self, request: Request) -> Handler:
        """The handler; sets request.version, .path (prefix cut off) and .params.

        Without a route, a handler that answers 404 or 405. Raises Invalid for an API version out of range.
        """
        path = self._strip_version(request)
        methods = self._literal.get(path)
        if methods is not None:
            handler = methods.get(request.method)
            if handler is not None:
                return handler
        allowed = set(methods or ())
        for pattern, method, handler in self._patterns.get(path.split("/", 2)[1], ()):
            if (found := pattern.fullmatch(path)) is None or not _plain(path):
                continue
            if method == request.method:
                request.params = found.groupdict()
                return handler
            allowed.add(method)
        return _refusal(frozenset(allowed))

    def _strip_version(self, request: Request) -> str:
        found = _VERSION.fullmatch(request.path)
        if found is None:
            request.version = self._range[1]
            return request.path
        text, rest = found[1], found[2]
        version = _version(text)
        if version < self._range[0]:
            raise Invalid(
                f"client version {text} is too old. Minimum supported API version is {self.minimum}, "
                "please upgrade your client to a newer version"
            )
        if version > self._range[1]:
            raise Invalid(f"client version {text} is too new. Maximum supported API version is {self.maximum}")
        request.version = version
        request.path = rest
        return rest


def _version(text: str) -> tuple[int, int]:
    """ "1.47" -> (1, 47); a missing or empty part counts as 0, as in moby's api/types/versions."""
    major, _, minor = text.partition(".")
    return int(major or 0), int(minor.partition(".")[0] or 0)


def _compile(pattern: str) -> re.Pattern[str]:
    parts: list[str] = []
    end = 0
    for found in _PARAMETER.finditer(pattern):
        parts.append(re.escape(pattern[end : found.start()]))
        parts.append(f"(?P<{found[1]}>{'.+' if found[2] else '[^/]+'})")
        end = found.end()
    parts.append(re.escape(pattern[end:]))
    return re.compile("".join(parts), re.DOTALL)


def _plain(path: str) -> bool:
    """No empty, "." or ".." segment: no name of ours has one, and a proxy in front might see another path."""
    return not any(part in {"", ".", ".."} for part in path[1:].split("/"))


def _refusal(allowed: frozenset[str]) -> Handler:
    async def refuse(_request: Request) -> Answer:
        if allowed:
            return json_response({"message": "method not allowed"}, 405, {"Allow": ", ".join(sorted(allowed))})
        return json_response({"message": "page not found"}, 404)

    return refuse
