from __future__ import annotations

import json
from typing import Any

import pytest

from tare.errors import Invalid
from tare.oci import image
from tare.oci.platform import Platform

DIGEST = "sha256:" + "b" * 64
LAYER: dict[str, Any] = {"mediaType": image.LAYER, "digest": DIGEST, "size": 7}
CONFIG = {"mediaType": image.CONFIG, "digest": DIGEST, "size": 5}
MANIFEST: dict[str, Any] = {"schemaVersion": 2, "mediaType": image.MANIFEST, "config": CONFIG, "layers": [LAYER]}
INDEX: dict[str, Any] = {"schemaVersion": 2, "mediaType": image.INDEX, "manifests": [LAYER]}
IMAGE: dict[str, Any] = {
    "architecture": "arm64",
    "os": "linux",
    "config": {"Env": ["A=b"], "ExposedPorts": {"80/tcp": {}}, "Cmd": None, "OnBuild": ["RUN x"], "Unknown": 1},
    "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
    "history": [{"created_by": "x"}, {"created_by": "y", "empty_layer": True}],
}


def dump(value: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({key: item for key, item in {**value, **changes}.items() if item is not ...}).encode()


def test_reads_a_manifest() -> None:
    found = image.decode_manifest(dump(MANIFEST), image.MANIFEST)
    assert found.layers[0].digest == DIGEST
    assert found.config.size == 5
    assert json.loads(image.encode(found)) == MANIFEST


def test_tells_manifest_from_index() -> None:
    assert isinstance(image.decode_document(dump(MANIFEST)), image.Manifest)
    assert isinstance(image.decode_document(dump(INDEX)), image.Index)
    assert isinstance(image.decode_document(dump(INDEX, mediaType=...)), image.Index)
    assert isinstance(image.decode_document(dump(MANIFEST, mediaType=...), image.DOCKER_MANIFEST), image.Manifest)


@pytest.mark.parametrize(
    "changes",
    [
        {"manifests": []},  # CVE-2021-41190
        {"mediaType": image.INDEX},
        {"mediaType": 7},
        {"schemaVersion": 1},
        {"schemaVersion": ...},
        {"layers": None},
        {"layers": ...},
        {"layers": [None]},
        {"layers": [{**LAYER, "digest": "sha256:../../x"}]},
        {"layers": [{**LAYER, "digest": DIGEST + "\n"}]},
        {"layers": [{**LAYER, "size": -1}]},
        {"layers": [{**LAYER, "size": 1 << 70}]},
        {"layers": [LAYER] * 501},
        {"config": None},
        {"subject": {**LAYER, "digest": "x"}},
    ],
)
def test_refuses_manifests_that_lie(changes: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        image.decode_manifest(dump(MANIFEST, **changes))
    with pytest.raises(Invalid):
        image.decode_document(dump(MANIFEST, **changes))


def test_refuses_an_index_that_is_also_a_manifest() -> None:
    for changes in ({"layers": []}, {"config": CONFIG}, {"mediaType": image.MANIFEST}):
        with pytest.raises(Invalid):
            image.decode_index(dump(INDEX, **changes))


def test_refuses_what_was_offered_as_something_else() -> None:
    for offered in (image.INDEX, image.DOCKER_MANIFEST):
        with pytest.raises(Invalid):
            image.decode_manifest(dump(MANIFEST), offered)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"\xff",
        b'{"schemaVersion":2,"schemaVersion":2,"layers":[]}',
        b'{"a":{"b":1,"b":2}}',
        b'{"a":NaN}',
        b"[" * 100000,
        b'{"a":' * 65 + b"1" + b"}" * 65,
        b"{} {}",
        b" " * ((4 << 20) + 1),
    ],
)
def test_refuses_bad_json(data: bytes) -> None:
    for decode in (image.decode_manifest, image.decode_index, image.decode_document):
        with pytest.raises(Invalid):
            decode(data)
    with pytest.raises(Invalid):
        image.decode_config(data)


def test_brackets_in_strings_are_no_depth() -> None:
    assert image.check_json(json.dumps({"a": '\\"[' * 1000}).encode(), "x") == {"a": '\\"[' * 1000}


def test_reads_a_config() -> None:
    found = image.decode_config(dump(IMAGE))
    assert found.config is not None
    assert found.config.env == ("A=b",)
    assert found.config.cmd is None
    assert found.diff_ids == (DIGEST,)
    assert found.platform == Platform("linux", "arm64")
    assert image.decode_config(image.encode(found)) == found
    text = json.loads(image.encode(found))
    assert text["rootfs"] == {"type": "layers", "diff_ids": [DIGEST]}
    assert text["history"][1] == {"created_by": "y", "empty_layer": True}
    assert set(text["config"]) == {"Env", "ExposedPorts", "OnBuild"}


@pytest.mark.parametrize(
    "changes",
    [
        {"rootfs": {"type": "tar", "diff_ids": []}},
        {"rootfs": None},
        {"rootfs": {"type": "layers", "diff_ids": ["sha256:x"]}},
        {"history": [{}, {}]},
        {"history": [None]},
        {"config": {"Env": "A=b"}},
    ],
)
def test_refuses_a_config_that_does_not_fit(changes: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        image.decode_config(dump(IMAGE, **changes))


@pytest.mark.parametrize("history", [None, [], [{"empty_layer": True}]])
def test_a_short_history_is_legal(history: Any) -> None:
    assert image.decode_config(dump(IMAGE, history=history)).diff_ids == (DIGEST,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("1970-01-01T00:00:00.000000001Z", 1),
        ("1970-01-01T01:00:00.5+01:00", 500_000_000),
        ("0001-01-01T00:00:00Z", -62_135_596_800_000_000_000),
        ("2024-13-01T00:00:00Z", 0),
        ("x", 0),
        ("", 0),
        (None, 0),
    ],
)
def test_time(text: str | None, expected: int) -> None:
    assert image.parse_time(text) == expected


def test_layer_media_types() -> None:
    assert image.compression(image.LAYER) == ""
    assert image.compression(image.DOCKER_LAYER_GZIP) == "gzip"
    with pytest.raises(Invalid):
        image.compression("application/json")
