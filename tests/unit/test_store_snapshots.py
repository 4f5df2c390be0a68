"""Snapshots and the trash, on a temporary data root."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tare.db import Database
from tare.errors import Conflict, NotFound
from tare.store.paths import Layout
from tare.store.snapshots import Snapshots

BASE, MIDDLE, TOP = ("sha256:" + letter * 64 for letter in "abc")
BOX = "1" * 64


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "root")
    layout.create()
    return layout


@pytest.fixture
def db(layout: Layout) -> Iterator[Database]:
    db = Database(str(layout.database))
    yield db
    db.close()


@pytest.fixture
def snapshots(db: Database, layout: Layout) -> Snapshots:
    return Snapshots(db, layout)


def layer(snapshots: Snapshots, chain_id: str, parent: str = "", **files: str) -> int:
    with snapshots.staging() as staging:
        for name, text in files.items():
            (staging.path / name).write_text(text)
        snapshots.commit(chain_id, staging.number, parent, sum(map(len, files.values())), len(files) + 1)
    return staging.number


def folders(layout: Layout) -> list[str]:
    return sorted(path.name for path in layout.snapshots.iterdir())


def test_rootfs_lists_layers_top_first(snapshots: Snapshots, layout: Layout) -> None:
    numbers = [layer(snapshots, BASE), layer(snapshots, MIDDLE, BASE), layer(snapshots, TOP, MIDDLE)]
    snapshots.prepare(BOX, TOP)
    mine = max(int(name) for name in folders(layout))
    root = layout.snapshots
    assert snapshots.rootfs(BOX) == {
        "lower": [f"{root}/{number}/fs" for number in reversed(numbers)],
        "upper": f"{root}/{mine}/fs",
        "work": f"{root}/{mine}/work",
    }
    assert Path(f"{root}/{mine}/fs").is_dir() and Path(f"{root}/{mine}/work").is_dir()
    assert snapshots.chain(BOX) == [BOX, TOP, MIDDLE, BASE]


def test_no_layers_means_the_empty_folder(snapshots: Snapshots, layout: Layout) -> None:
    snapshots.prepare(BOX)
    assert snapshots.rootfs(BOX)["lower"] == [str(layout.empty)]
    assert os.listdir(layout.empty) == []


def test_view_owns_no_folder(snapshots: Snapshots, layout: Layout) -> None:
    number = layer(snapshots, BASE)
    snapshots.view("look", BASE)
    assert snapshots.rootfs("look") == {"lower": [str(layout.fs(number))], "upper": "", "work": ""}
    assert snapshots.rootfs(BASE) == snapshots.rootfs("look")
    snapshots.remove("look")
    assert not snapshots.exists("look") and layout.fs(number).is_dir()


@pytest.mark.parametrize("mode", [0o755, 0o700, 0o1777])
def test_upper_takes_the_mode_of_the_parents_root(snapshots: Snapshots, layout: Layout, mode: int) -> None:
    number = layer(snapshots, BASE)
    layout.fs(number).chmod(mode)
    old = os.umask(0o077)
    try:
        snapshots.prepare(BOX, BASE)
        snapshots.prepare("2" * 64)
    finally:
        os.umask(old)
    assert Path(str(snapshots.rootfs(BOX)["upper"])).stat().st_mode & 0o7777 == mode
    assert Path(str(snapshots.rootfs("2" * 64)["upper"])).stat().st_mode & 0o7777 == 0o755
    assert layout.snapshot(number).stat().st_mode & 0o7777 == 0o700


def test_prepare_refuses_a_taken_key_and_a_missing_parent(snapshots: Snapshots, layout: Layout) -> None:
    snapshots.prepare(BOX)
    before = folders(layout)
    with pytest.raises(Conflict):
        snapshots.prepare(BOX)
    with pytest.raises(NotFound):
        snapshots.prepare("2" * 64, BASE)
    with pytest.raises(NotFound):  # an active snapshot is no parent
        snapshots.prepare("2" * 64, BOX)
    assert folders(layout) == before


def test_rolled_back_prepare_leaves_no_folder(snapshots: Snapshots, db: Database, layout: Layout) -> None:
    with pytest.raises(ZeroDivisionError), db.transaction():
        snapshots.prepare(BOX)
        assert len(folders(layout)) == 1
        raise ZeroDivisionError
    assert folders(layout) == [] and not snapshots.exists(BOX)


def test_remove_waits_for_the_commit(snapshots: Snapshots, db: Database, layout: Layout) -> None:
    snapshots.prepare(BOX)
    with pytest.raises(ZeroDivisionError), db.transaction():
        snapshots.remove(BOX)
        raise ZeroDivisionError
    assert snapshots.exists(BOX) and len(folders(layout)) == 1
    with db.transaction():
        snapshots.remove(BOX)
        assert len(folders(layout)) == 1
    assert folders(layout) == [] and not snapshots.exists(BOX)
    assert len(list(layout.trash.iterdir())) == 1
    snapshots.remove(BOX)


def test_parent_cannot_go_first(snapshots: Snapshots) -> None:
    layer(snapshots, BASE)
    snapshots.prepare(BOX, BASE)
    with pytest.raises(Conflict):
        snapshots.remove(BASE)
    snapshots.remove(BOX)
    snapshots.remove(BASE)
    with pytest.raises(NotFound):
        snapshots.rootfs(BASE)


def test_second_load_of_a_layer_yields_to_the_first(snapshots: Snapshots, layout: Layout) -> None:
    with snapshots.staging() as one, snapshots.staging() as two:
        assert str(one.number) in snapshots.leases and str(two.number) in snapshots.leases
        snapshots.commit(BASE, one.number, "", 1)
        snapshots.commit(BASE, two.number, "", 1)
    assert folders(layout) == [str(one.number)]
    assert str(one.number) not in snapshots.leases
    assert snapshots.rootfs(BASE)["lower"] == [str(layout.fs(one.number))]


def test_abandoned_staging_is_thrown_away(snapshots: Snapshots, layout: Layout) -> None:
    with snapshots.staging() as staging:
        (staging.path / "file").write_text("x")
    assert folders(layout) == []
    assert snapshots.trash.empty() > 0


def test_numbers_are_not_used_twice(snapshots: Snapshots, db: Database, layout: Layout) -> None:
    layout.snapshot(41).mkdir()
    (layout.snapshots / "lost+found").mkdir()
    again = Snapshots(db, layout)
    again.prepare(BOX)
    assert "42" in folders(layout)


def test_usage_counts_links_once_and_follows_none(snapshots: Snapshots, tmp_path: Path) -> None:
    layer(snapshots, BASE, a="12345")
    assert asyncio.run(snapshots.usage(BASE)) == (5, 2)
    assert snapshots.layer_usage(BASE) == (5, 2)
    snapshots.prepare(BOX, BASE)
    upper = Path(str(snapshots.rootfs(BOX)["upper"]))
    (upper / "d" / "e").mkdir(parents=True)
    (upper / "d" / "e" / "f").write_bytes(b"x" * 1000)
    os.link(upper / "d" / "e" / "f", upper / "g")
    (tmp_path / "big").write_bytes(b"x" * 100_000)
    (upper / "link").symlink_to(tmp_path / "big")
    size, inodes = asyncio.run(snapshots.usage(BOX))
    assert size == 1000 + len(str(tmp_path / "big"))
    assert inodes == 4  # d, e, f = g, link
    with pytest.raises(NotFound):
        asyncio.run(snapshots.usage("none"))


def test_trash_follows_no_link_and_survives_depth(snapshots: Snapshots, layout: Layout, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "secret").write_text("x")
    snapshots.prepare(BOX)
    upper = Path(str(snapshots.rootfs(BOX)["upper"]))
    (upper / "link").symlink_to(canary)
    os.link(canary / "secret", upper / "hard")
    os.mkfifo(upper / "pipe")
    folder = os.open(upper, os.O_DIRECTORY)
    for _ in range(3000):  # deeper than PATH_MAX and than the interpreter's recursion limit
        os.mkdir("d", dir_fd=folder)
        below = os.open("d", os.O_DIRECTORY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    snapshots.remove(BOX)
    snapshots.trash.empty()
    assert os.listdir(layout.trash) == []
    assert (canary / "secret").read_text() == "x"


def test_removal_is_finished_off_the_reply_path(snapshots: Snapshots, layout: Layout) -> None:
    async def scenario() -> None:
        for number in range(5):
            snapshots.prepare(f"{number}" * 64)
        for number in range(5):
            snapshots.remove(f"{number}" * 64)
        assert folders(layout) == []
        assert await snapshots.trash.drain() > 0

    asyncio.run(scenario())
    assert os.listdir(layout.trash) == []
