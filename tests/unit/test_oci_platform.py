from __future__ import annotations

import pytest

from tare.errors import Invalid
from tare.oci.platform import host, parse, preference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("LINUX/arm64/v8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("aarch64", "linux/arm64"),
        ("windows/amd64", "windows/amd64"),
    ],
)
def test_parse(text: str, expected: str) -> None:
    assert str(parse(text)) == expected


@pytest.mark.parametrize("text", ["", "a/b/c/d", "linux/", "linux/../x", "a b", "linux/amd64\n", "x" * 70])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(Invalid):
        parse(text)


def test_os_alone_is_the_hosts_machine() -> None:
    assert parse("linux").architecture == host().architecture


def best(wanted: str, offers: list[str]) -> str | None:
    ranked = [(rank, offer) for offer in offers if (rank := preference(parse(wanted), parse(offer))) is not None]
    return min(ranked)[1] if ranked else None


def test_preference() -> None:
    assert best("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm64"]) == "linux/arm/v6"
    assert best("linux/arm/v6", ["linux/arm/v7"]) is None
    assert best("linux/arm64", ["linux/arm/v6", "linux/arm/v7", "linux/amd64"]) == "linux/arm/v7"
    assert best("linux/arm64", ["linux/arm/v7", "linux/arm64/v8"]) == "linux/arm64/v8"
    assert best("linux/amd64", ["linux/386", "linux/amd64/v2"]) == "linux/386"
    assert best("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"]) == "linux/amd64/v2"
    assert best("linux/amd64", ["windows/amd64"]) is None
