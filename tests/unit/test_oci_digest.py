from __future__ import annotations

import pytest

from tare.errors import Invalid
from tare.oci import digest

HEX = "0123456789abcdef" * 4


def test_accepts_the_two_full_forms() -> None:
    assert digest.parse(f"sha256:{HEX}") == f"sha256:{HEX}"
    assert digest.parse(f"sha512:{HEX}{HEX}").endswith(HEX)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "sha256:../../x",
        HEX,
        f"md5:{HEX}",
        f"sha256:{HEX.upper()}",
        f"sha256:{HEX[:-1]}",
        f"sha256:{HEX}0",
        f"sha256:{HEX}\n",
        f"sha256:{HEX[:-1]}\0",
        f"SHA256:{HEX}",
        f" sha256:{HEX}",
        f"sha512:{HEX}",
        f"sha256:{HEX[:-1]}\N{ARABIC-INDIC DIGIT ONE}",
    ],
)
def test_refuses_all_else(text: str) -> None:
    assert not digest.is_digest(text)
    with pytest.raises(Invalid):
        digest.parse(text)


def test_a_hostile_text_is_shown_safely() -> None:
    with pytest.raises(Invalid) as caught:
        digest.parse("\x1b[31m" + "x" * 10000)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_chain_ids_are_those_of_the_image_spec() -> None:
    layers = [digest.of(b"a"), digest.of(b"b"), digest.of(b"c")]
    first, second, third = digest.chain_ids(layers)
    assert first == layers[0]
    assert second == digest.of(f"{layers[0]} {layers[1]}".encode())
    assert third == digest.of(f"{second} {layers[2]}".encode())
    assert digest.chain_ids([]) == []


def test_of_chunks_equals_of_the_whole() -> None:
    assert digest.of([b"ab", b"", b"c"]) == digest.of(b"abc")
