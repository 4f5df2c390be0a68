"""Version prefix, patterns and queries: pure, no socket."""

from __future__ import annotations

import asyncio

import pytest

from tare.errors import Invalid
from tare.http import head
from tare.http.message import Answer, HttpError, Query, Request, Response, json_response
from tare.http.router import Router


class NoBody:
    async def read(self) -> bytes:
        return b""

    async def disconnected(self) -> None:
        return None


def ask(router: Router, method: str, target: str) -> tuple[Response, Request]:
    path, query = head.decode_target(target)
    request = Request(method, target, path, query, {}, NoBody())
    answer = asyncio.run(router.match(request)(request))  # type: ignore[arg-type]
    assert isinstance(answer, Response)
    return answer, request


def router() -> Router:
    made = Router()

    def named(name: str):  # type: ignore[no-untyped-def]
        async def handler(request: Request) -> Answer:
            return Response(200, name.encode())

        return handler

    for method, pattern in [
        ("GET", "/_ping"),
        ("GET", "/images/json"),
        ("GET", "/images/{name:path}/json"),
        ("DELETE", "/images/{name:path}"),
        ("GET", "/containers/{id}/json"),
        ("POST", "/containers/{id}/start"),
        ("POST", "/containers/create"),
    ]:
        made.add(method, pattern, named(f"{method} {pattern}"))
    return made


@pytest.mark.parametrize(
    ("method", "target", "route", "params"),
    [
        ("GET", "/_ping", "GET /_ping", {}),
        ("GET", "/v1.24/_ping", "GET /_ping", {}),
        ("GET", "/images/json", "GET /images/json", {}),
        ("GET", "/images/busybox/json", "GET /images/{name:path}/json", {"name": "busybox"}),
        ("GET", "/v1.47/images/r:5000/a/b:t/json", "GET /images/{name:path}/json", {"name": "r:5000/a/b:t"}),
        ("DELETE", "/images/a/json", "DELETE /images/{name:path}", {"name": "a/json"}),
        ("GET", "/containers/a%20b/json", "GET /containers/{id}/json", {"id": "a b"}),
        ("GET", "http://docker/v1.41/images/json?all=1", "GET /images/json", {}),
    ],
)
def test_routes(method: str, target: str, route: str, params: dict[str, str]) -> None:
    answer, request = ask(router(), method, target)
    assert (answer.body.decode(), request.params) == (route, params)


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1.47", 404),
        ("GET", "/containers/a/b/json", 404),
        ("GET", "/containers/../json", 404),
        ("GET", "/containers/%2e%2e/json", 404),
        ("GET", "/images/../../etc/json", 404),
        ("GET", "//images/json", 404),
        ("POST", "/containers/x/json", 405),
        ("POST", "/_ping", 405),
    ],
)
def test_refusals(method: str, target: str, status: int) -> None:
    answer, _ = ask(router(), method, target)
    assert answer.status == status
    assert answer.body.startswith(b'{"message":"')


def test_method_refusal_names_the_allowed_ones() -> None:
    answer, _ = ask(router(), "PUT", "/containers/x/start")
    assert answer.headers == {"Allow": "POST"}


def test_version_of_the_path_and_default() -> None:
    assert ask(router(), "GET", "/v1.30/_ping")[1].version == (1, 30)
    assert ask(router(), "GET", "/_ping")[1].version == (1, 47)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (
            "1.20",
            "client version 1.20 is too old. Minimum supported API version is 1.24, "
            "please upgrade your client to a newer version",
        ),
        ("1.99", "client version 1.99 is too new. Maximum supported API version is 1.47"),
        ("2", "client version 2 is too new. Maximum supported API version is 1.47"),
    ],
)
def test_version_out_of_range(version: str, message: str) -> None:
    with pytest.raises(Invalid) as caught:
        ask(router(), "GET", f"/v{version}/_ping")
    assert str(caught.value) == message


def test_a_route_given_twice_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="twice"):
        router().add("GET", "/_ping", lambda request: None)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("text", "value"),
    [("", False), ("0", False), ("no", False), ("False", False), ("NONE", False), ("1", True), ("x", True)],
)
def test_flags_by_dockers_rule(text: str, value: bool) -> None:
    assert Query(f"a={text}").flag("a") is value


def test_query() -> None:
    query = Query("t=a&t=b%2Fc&empty=&plus=a+b")
    assert query.all("t") == ["a", "b/c"]
    assert query.get("t") == "a"
    assert query.get("plus") == "a b"
    assert "empty" in query and "missing" not in query
    assert query.get("missing", "x") == "x"
    assert query.flag("missing") is False and query.flag("missing", default=True) is True


def test_query_with_too_many_fields() -> None:
    with pytest.raises(Invalid):
        Query("&".join(f"a{n}=1" for n in range(2000)))


@pytest.mark.parametrize("target", ["/a%00b", "/a%0ab", "/%ff"])
def test_bad_paths(target: str) -> None:
    with pytest.raises(HttpError) as caught:
        head.decode_target(target)
    assert caught.value.status == 400


def test_header_values_cannot_start_another_header() -> None:
    with pytest.raises(ValueError, match="line end"):
        head.lines({"X": "a\r\nEvil: 1"})
    assert head.lines({"A": "1", "B": "2"}) == b"A: 1\r\nB: 2\r\n"


def test_date() -> None:
    assert head.date(784111777) == b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"


def test_json_response() -> None:
    answer = json_response({"a": 1}, 201)
    assert (answer.status, answer.body, answer.content_type) == (201, b'{"a":1}\n', "application/json")
