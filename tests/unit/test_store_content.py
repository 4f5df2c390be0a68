"""Paths, blobs and leases."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from tare.errors import Invalid, NotFound
from tare.store.content import Content
from tare.store.leases import Leases
from tare.store.paths import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "root")
    layout.create()
    return layout


@pytest.fixture
def content(layout: Layout) -> Content:
    return Content(layout)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_folders_have_their_modes_under_any_umask(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        layout = Layout(tmp_path / "a" / "root")
        layout.create()
        layout.empty.chmod(0o777)
        layout.create()
    finally:
        os.umask(old)
    assert mode(layout.root) == 0o710
    assert mode(layout.empty) == 0o755
    for path in (layout.blobs, layout.ingest, layout.snapshots, layout.containers, layout.trash, layout.seccomp):
        assert mode(path) == 0o700


def test_planted_link_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.mkdir(mode=0o755)
    root = tmp_path / "root"
    root.mkdir()
    (root / "snapshots").symlink_to(canary)
    with pytest.raises(OSError):
        Layout(root).create()
    assert mode(canary) == 0o755


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../../etc/passwd", "a\0b"])
def test_names_with_a_meaning_are_no_file_names(layout: Layout, name: str) -> None:
    with pytest.raises(Invalid):
        layout.ingestion(name)
    with pytest.raises(Invalid):
        layout.discarded(name)
    with pytest.raises(Invalid):
        layout.container(name)


@pytest.mark.parametrize(
    "text", ["sha256:../../x", "sha256:", "md5:" + "a" * 32, "sha256:" + "A" * 64, "sha256:" + "a" * 63, "a" * 64, ""]
)
def test_only_whole_digests_become_paths(layout: Layout, text: str) -> None:
    with pytest.raises(Invalid):
        layout.blob(text)


def test_commit_publishes_under_the_digest(content: Content, layout: Layout) -> None:
    data = b"x" * 100_000
    with content.ingest() as writer:
        writer.write(data[:1])
        writer.write(data[1:])
        assert not content.has(digest(data))
        assert writer.commit(digest(data), len(data)) == digest(data)
    assert content.read(digest(data)) == data
    assert content.size(digest(data)) == len(data)
    assert mode(layout.blob(digest(data))) == 0o640
    assert list(layout.ingest.iterdir()) == []
    assert list(content.walk()) == [digest(data)]
    descriptor = content.open(digest(data))
    assert os.read(descriptor, 3) == b"xxx"
    os.close(descriptor)


@pytest.mark.parametrize(("expected", "size"), [(digest(b"other"), -1), ("", 4), ("", 6), (digest(b"hello"), 0)])
def test_mismatch_stores_nothing(content: Content, layout: Layout, expected: str, size: int) -> None:
    with content.ingest() as writer:
        writer.write(b"hello")
        with pytest.raises(Invalid):
            writer.commit(expected, size)
    assert list(content.walk()) == []
    assert list(layout.ingest.iterdir()) == []


def test_leaving_without_commit_stores_nothing(content: Content, layout: Layout) -> None:
    with content.ingest() as writer:
        writer.write(b"hello")
        names = [path.name for path in layout.ingest.iterdir()]
        assert names[0] in content.leases
    assert list(layout.ingest.iterdir()) == []
    assert names[0] not in content.leases


def test_writing_twice_stores_once(content: Content, layout: Layout) -> None:
    first = content.write(b"hello")
    inode = layout.blob(first).stat().st_ino
    assert content.write(b"hello") == first
    assert layout.blob(first).stat().st_ino == inode
    assert content.delete(first) == 5
    assert content.delete(first) == 0


def test_missing_content(content: Content) -> None:
    for act in (content.read, content.open, content.size):
        with pytest.raises(NotFound):
            act(digest(b"none"))


def test_damaged_and_oversized_content_is_refused(content: Content, layout: Layout) -> None:
    name = content.write(b"hello")
    with pytest.raises(Invalid, match="larger than 4 bytes"):
        content.read(name, 4)
    layout.blob(name).write_bytes(b"hellO")
    with pytest.raises(OSError, match="damaged"):
        content.read(name)


def test_foreign_files_are_passed_over(content: Content, layout: Layout) -> None:
    (layout.blobs / "sha256" / "README").write_text("x")
    (layout.blobs / "notes").mkdir()
    (layout.blobs / "notes" / ("a" * 64)).write_text("x")
    assert list(content.walk()) == []


def test_root_is_an_oci_layout(content: Content, layout: Layout) -> None:
    assert json.loads(layout.oci_layout.read_text()) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads(layout.index.read_text())["manifests"] == []
    content.write_index([{"digest": "x"}])
    assert json.loads(layout.index.read_text())["manifests"] == [{"digest": "x"}]
    assert mode(layout.index) == 0o640


def test_leases_count() -> None:
    leases = Leases()
    with leases.take("a") as first, leases.take("a", "b") as second:
        second.hold("a")
        first.close()
        assert "a" in leases and "b" in leases
        second.close()
        assert "a" not in leases and "b" not in leases
