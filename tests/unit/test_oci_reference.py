from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.errors import Invalid
from tare.oci import reference

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("nginx", "docker.io/library/nginx:latest", "nginx:latest"),
        ("nginx:1.2", "docker.io/library/nginx:1.2", "nginx:1.2"),
        ("docker.io/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
        ("index.docker.io/a/b", "docker.io/a/b:latest", "a/b:latest"),
        ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
        ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest"),
        ("HOST/x", "HOST/x:latest", "HOST/x:latest"),
        ("[::1]:5000/x:y", "[::1]:5000/x:y", "[::1]:5000/x:y"),
        ("a__b/c-----d", "docker.io/a__b/c-----d:latest", "a__b/c-----d:latest"),
        (f"x@{DIGEST}", f"docker.io/library/x@{DIGEST}", f"x@{DIGEST}"),
        (f"x:t@{DIGEST}", f"docker.io/library/x:t@{DIGEST}", f"x:t@{DIGEST}"),
    ],
)
def test_normalises(text: str, full: str, familiar: str) -> None:
    found = reference.parse(text)
    assert str(found) == full
    assert found.familiar() == familiar
    assert reference.parse(full) == found
    assert reference.parse(familiar) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Foo", "invalid reference format: repository name (library/Foo) must be lowercase"),
        ("foo/Bar:x", "invalid reference format: repository name (foo/Bar) must be lowercase"),
        ("", "invalid reference format"),
        ("a:", "invalid reference format"),
        ("a///b", "invalid reference format"),
        ("-a", "invalid reference format"),
        ("a_-_b", "invalid reference format"),
        ("a:" + "x" * 129, "invalid reference format"),
        ("a\n", "invalid reference format"),
        ("a@sha256:12", "invalid reference format"),
        ("../x", "invalid reference format"),
        ("a/" * 200 + "b", "repository name must not be more than 255 characters"),
        ("e" * 64, f"invalid repository name ({'e' * 64}), cannot specify 64-byte hexadecimal strings"),
        ("a@md5:" + "1" * 32, 'unsupported digest algorithm: "md5"'),
    ],
)
def test_refuses_with_dockers_words(text: str, message: str) -> None:
    with pytest.raises(Invalid) as caught:
        reference.parse(text)
    assert str(caught.value) == message


def test_no_default_tag_when_not_asked() -> None:
    assert reference.parse("x", default_tag=False).tag == ""
    assert reference.parse(f"x@{DIGEST}").tag == ""


def test_tag_and_digest_replace() -> None:
    assert reference.parse("x:1").with_tag("2").familiar() == "x:2"
    assert reference.parse("x:1").with_digest(DIGEST).familiar() == f"x@{DIGEST}"
    with pytest.raises(Invalid, match="invalid tag format"):
        reference.parse("x").with_tag("-")


@given(st.text(alphabet="aA0.-_:/@[]\n é", max_size=40))
def test_either_refused_or_read_back_the_same(text: str) -> None:
    try:
        found = reference.parse(text)
    except Invalid:
        return
    assert reference.parse(str(found)) == found
    assert reference.parse(found.familiar()) == found
    assert ".." not in found.path.split("/")
