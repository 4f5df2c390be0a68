"""JSON at the door, filters and times: what is refused, and what real clients rely on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading

import api_house
import msgspec
import pytest
from msgspec import UNSET

from tare.api import decode, filters, times
from tare.api.container_wire import CreateBody
from tare.errors import Invalid
from tare.http.message import HttpError, Request


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a":1,"a":2}', 'duplicate key "a"'),
        ("[" * 65 + "]" * 65, "exceeded max depth"),
        ("[" * 200000, "exceeded max depth"),
        ('{"a":NaN}', "NaN"),
        ('{"a":-Infinity}', "Infinity"),
        ('{"a":1e999}', "out of range"),
        ('{"a":9223372036854775808}', "out of range"),
        ('{"a":-9223372036854775809}', "out of range"),
        ('{"a":' + "9" * 5000 + "}", "out of range"),
        ('{"a":"\\ud800"}', "surrogate"),
        ("{} {}", "unexpected content after JSON"),
        ('{"a":', "invalid JSON"),
    ],
)
def test_refuses(text: str, expected: str) -> None:
    with pytest.raises(Invalid, match=expected.replace("(", r"\(")):
        decode.document(text)


def test_depth_counts_no_brackets_in_strings() -> None:
    assert decode.document(json.dumps({"a": "[{" * 100})) == {"a": "[{" * 100}
    assert decode.document("[" * 64 + "]" * 64)


def test_not_utf8() -> None:
    with pytest.raises(Invalid, match="UTF-8"):
        decode.document(b'{"a":"\xff"}')


def test_pairs_of_surrogates_are_fine() -> None:
    assert decode.document('"\\ud83d\\ude00"') == "\U0001f600"


def create_body(text: str) -> CreateBody:
    return decode.decoded(text.encode(), CreateBody)


def test_null_fields_are_absent_but_null_map_values_stay() -> None:
    body = create_body('{"Tty":null,"Labels":{"com.x":null,"Foo":null},"HostConfig":{"Sysctls":{"a.b":null},"Init":null}}')
    assert body.tty is False and body.labels == {"com.x": None, "Foo": None}
    assert body.host_config.sysctls == {"a.b": ""} and body.host_config.init is UNSET


def test_names_of_members_count_in_any_case() -> None:
    body = create_body(
        '{"image":"a","hostconfig":{"memory":7,"RESTARTPOLICY":{"name":"always"},"Mounts":[{"type":"bind"}]},'
        '"Labels":{"image":"b","Image":"c"},"healthcheck":{"RETRIES":2},"Unknown":{"a":1}}'
    )
    assert (body.image, body.labels) == ("a", {"image": "b", "Image": "c"})
    host = body.host_config
    assert (host.memory, host.restart_policy.name, host.mounts[0].type) == (7, "always", "bind")
    assert body.healthcheck.retries == 2
    with pytest.raises(Invalid, match='duplicate key "image"'):
        create_body('{"Image":"a","image":"b"}')


def test_a_large_body_is_decoded_in_a_thread() -> None:
    seen = []

    class Body(msgspec.Struct):
        a: str

        def __post_init__(self) -> None:
            seen.append(threading.current_thread() is threading.main_thread())

    async def main() -> None:
        for size in (10, decode.THREAD_FROM):
            raw = b'{"a":"%s"}' % (b"x" * size)
            headers = {"content-type": "application/json"}
            request = Request("POST", "/", "/", "", headers, api_house.Body(raw))
            assert len((await decode.body(request, Body)).a) == size
        request = Request("POST", "/", "/", "", {"content-length": str(decode.MAX_BODY + 1)}, api_house.Body(b""))
        with pytest.raises(HttpError, match="larger than 1048576 bytes"):
            await decode.body(request, Body)

    asyncio.run(main())
    assert seen == [True, False]


@pytest.mark.parametrize(
    ("given", "expected"), [(None, None), ("", ("",)), ("ls", ("ls",)), (["a", "b"], ("a", "b")), ([], ())]
)
def test_text_list(given: object, expected: object) -> None:
    assert decode.text_list(given) == expected  # type: ignore[arg-type]


def test_filters_in_both_spellings() -> None:
    for text in ('{"label":["a=b"]}', '{"label":{"a=b":true,"c":false}}'):
        wanted = filters.parse(text, ["label"])
        assert wanted.get("label") == ("a=b",)
        assert wanted.labels({"a": "b"}) and not wanted.labels({"a": "c"}) and not wanted.labels({})


@pytest.mark.parametrize("text", ["[]", "x", '{"label":"a"}', '{"label":[1]}', '"a"'])
def test_filters_of_another_shape(text: str) -> None:
    with pytest.raises(Invalid, match="^invalid filter$"):
        filters.parse(text, ["label"])


def test_unknown_filter() -> None:
    with pytest.raises(Invalid, match="^invalid filter 'colour'$"):
        filters.parse('{"colour":["red"]}', ["label"])


def test_filter_flags() -> None:
    assert filters.parse('{"dangling":["true"]}', ["dangling"]).flag("dangling", default=False)
    assert not filters.parse('{"dangling":["0"]}', ["dangling"]).flag("dangling", default=True)
    assert filters.Filters({}).flag("dangling", default=True)
    with pytest.raises(Invalid, match="invalid filter 'dangling=\\[maybe\\]'"):
        filters.Filters({"dangling": ("maybe",)}).flag("dangling", default=True)


def test_search_is_a_regular_expression_without_catastrophes() -> None:
    def found(pattern: str, name: str) -> bool:
        return filters.Filters({"name": (pattern,)}).search("name", name)

    assert found("^web", "web1") and not found("^web$", "web1") and found("b1", "web1")
    assert not found("(a+)+$", "a" * 200 + "b")
    assert not found("[", "web1")


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0001-01-01T00:00:00Z"),
        (10**9, "1970-01-01T00:00:01Z"),
        (1_700_000_000_123_456_789, "2023-11-14T22:13:20.123456789Z"),
        (1_700_000_000_100_000_000, "2023-11-14T22:13:20.1Z"),
    ],
)
def test_rfc3339(ns: int, text: str) -> None:
    assert times.rfc3339(ns) == text


def test_stamps() -> None:
    assert times.stamp("", "since") == 0
    assert times.stamp("1700000000", "since") == 1_700_000_000 * 10**9
    assert times.stamp("1700000000.5", "since") == 1_700_000_000_500_000_000
    assert times.stamp("1700000000.000000001", "since") == 1_700_000_000_000_000_001
    with pytest.raises(Invalid, match='invalid value for "since"'):
        times.stamp("yesterday", "since")


def test_until() -> None:
    hour = 3600 * 10**9
    assert times.until("1h30m", 10 * hour) == 10 * hour - hour * 3 // 2
    assert times.until("5", 0) == 5 * 10**9
    assert times.until("2023-11-14T22:13:20Z", 0) == 1_700_000_000 * 10**9
    for text in ("soon", "", "1x", "9" * 400 + "h", "9" * 5000, "\u0661h"):
        with pytest.raises(Invalid):
            times.until(text or "-", 0)
    for text in ("0001-01-01T00:00:00", "9999-12-31T23:59:59-12:00", "9" * 18 + "h"):
        with contextlib.suppress(Invalid):
            assert times.until(text, 0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (3599, "59 minutes"),
        (3600, "About an hour"),
        (5400, "2 hours"),
        (47 * 3600, "47 hours"),
        (48 * 3600, "2 days"),
        (14 * 86400, "2 weeks"),
        (60 * 86400, "2 months"),
        (730 * 86400, "2 years"),
    ],
)
def test_ago(seconds: int, text: str) -> None:
    assert times.ago(seconds * 10**9) == text
