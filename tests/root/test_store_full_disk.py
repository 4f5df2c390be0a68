"""A full data root: nothing is lost, nothing is half done, and rm still works.

Each scenario is a process of its own in a mount namespace of its own, on a small tmpfs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

PRELUDE = """
import asyncio, os, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from tare.db import Database
from test_store_archives import ONE, Store, docker_archive, tar
root = Path(sys.argv[1])

def fill():
    with open(root / "fill", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    assert os.statvfs(root).f_bavail == 0
"""


def scenario(path: Path, size: str, *codes: str) -> None:
    """Run the pieces one after the other, each in a new process, on one tmpfs."""
    path.mkdir()
    shell = (
        f'mount -t tmpfs -o size={size} tmpfs "$1" && shift || exit 1; '
        'for code; do "$PY" -c "$code" "$D" "$T" || exit 1; done'
    )
    environment = {**os.environ, "PY": sys.executable, "D": str(path), "T": str(Path(__file__).parent)}
    command = ["unshare", "-m", "sh", "-c", shell, "sh", str(path), *(PRELUDE + code for code in codes)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_rows_survive_and_removal_works(tmp_path: Path) -> None:
    scenario(
        tmp_path / "disk",
        "8m",
        """
store = Store(root)
store.load(docker_archive([ONE], ["a:1"])[0])
for number in range(20):
    store.snapshots.prepare(f"{number:064x}", store.images.resolve("a:1").top)
    store.db.execute("INSERT INTO containers VALUES (?, ?, ?, 1)", (f"{number:064x}", str(number), "x" * 2000))
fill()
for number in range(10):
    with store.db.transaction():
        store.snapshots.remove(f"{number:064x}")
        store.db.execute("DELETE FROM containers WHERE id = ?", (f"{number:064x}",))
        store.db.execute("UPDATE containers SET row = ? WHERE name = '15'", ("stopped" * 300,))
assert len(os.listdir(store.layout.snapshots)) == 11
os._exit(0)  # as kill -9
""",
        """
store = Store(root)
rows = store.db.execute("SELECT name, substr(row, 1, 7) FROM containers")
assert len(rows) == 10 and ("15", "stopped") in rows, rows
assert store.images.resolve("a:1").tags == ("a:1",)
assert len(store.images.remove("a:1", force=True, noprune=False, in_use=lambda image: [])) == 2
store.db.close()
""",
        """
fill()
store = Store(root)  # no log file, no free block
assert len(store.db.execute("SELECT name FROM containers")) == 10
""",
    )


def test_load_without_space_leaves_nothing(tmp_path: Path) -> None:
    scenario(
        tmp_path / "disk",
        "16m",
        """
store = Store(root)
store.load(docker_archive([ONE], ["kept:1"])[0])
before = sorted(store.content.walk()), sorted(os.listdir(store.layout.snapshots))
big = docker_archive([ONE, tar({"big": os.urandom(10 << 20)})], ["big:1"])[0]
free = os.statvfs(root).f_bavail
try:
    store.load(big)
except OSError as error:
    assert "No space" in str(error), error
else:
    raise AssertionError("loaded 20 MB into 16 MB")
asyncio.run(store.snapshots.trash.drain())
assert (sorted(store.content.walk()), sorted(os.listdir(store.layout.snapshots))) == before
assert os.listdir(store.layout.ingest) == os.listdir(store.layout.trash) == []
assert free - os.statvfs(root).f_bavail < 64
store.load(docker_archive([ONE], ["again:1"])[0])
""",
    )
