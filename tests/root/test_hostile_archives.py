"""Archives that mean harm, through `load` and `import` of the stock client: see hostile.py for what each of them tries."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hostile
import pytest
from conftest import SLOW, Engine

pytestmark = pytest.mark.root

CAP_S = 40
"""No archive may keep its sender waiting longer."""
GROWTH_KIB = 20 << 10
"""What the daemon may grow by, whatever is sent: bytes belong to the worker."""
NAMES = sorted(hostile.cases("/canary"))
METADATA = sorted(hostile.metadata("/canary"))


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hostile.Canary]:
    made = hostile.Canary(tmp_path_factory.mktemp("outside") / "canary")
    yield made
    made.check()


@pytest.fixture(scope="module")
def corpus(canary: hostile.Canary) -> dict[str, hostile.Case]:
    return hostile.cases(str(canary))


def resident_kib(engine: Engine, field: str = "VmRSS") -> int:
    status = Path(f"/proc/{engine.pid}/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0])


@pytest.fixture(scope="module")
def first_size(engine: Engine) -> int:
    """KiB of the daemon before it met the first of them."""
    return resident_kib(engine)


def send(engine: Engine, data: bytes, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = engine.docker(*arguments, input=data, check=False, timeout=CAP_S * SLOW)
    return subprocess.CompletedProcess(arguments, done.returncode, _text(done.stdout), _text(done.stderr))


def _text(output: str | bytes) -> str:
    return output if isinstance(output, str) else output.decode(errors="replace")


def check_answer(done: subprocess.CompletedProcess[str], refusal: str | None) -> None:
    if refusal is None:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode != 0, done.stdout
    sentence = done.stderr.strip()
    assert re.search(refusal, sentence), sentence
    assert "\n" not in sentence and len(sentence) < 400 and sentence.isprintable(), sentence


@pytest.mark.parametrize("name", NAMES)
def test_archive_is_taken_whole_or_refused_in_one_sentence(
    engine: Engine, canary: hostile.Canary, corpus: dict[str, hostile.Case], first_size: int, name: str
) -> None:
    case = corpus[name]
    with ThreadPoolExecutor() as at_once:
        importing = at_once.submit(send, engine, case.archive, "import", "-", "hostile:import")
        loaded = send(engine, hostile.image("hostile:load", [hostile.honest(), case.archive]), "load")
    imported = importing.result()
    canary.check(imported.stdout, imported.stderr, loaded.stdout, loaded.stderr)
    check_answer(imported, case.refusal)
    check_answer(loaded, case.refusal)
    assert engine.http("GET", "/_ping").stdout == "OK"
    assert resident_kib(engine) - first_size < GROWTH_KIB


@pytest.mark.parametrize("name", METADATA)
def test_image_archive_whose_own_files_are_links_is_refused(engine: Engine, canary: hostile.Canary, name: str) -> None:
    done = send(engine, hostile.metadata(str(canary))[name], "load")
    canary.check(done.stdout, done.stderr)
    check_answer(done, ".")


def test_refused_archive_leaves_no_bytes(engine: Engine, canary: hostile.Canary) -> None:
    """Neither the honest layer below nor half of the other one."""
    blobs, snapshots = engine.data / "blobs" / "sha256", engine.data / "snapshots"
    before = set(os.listdir(blobs)), set(os.listdir(snapshots))
    layer = hostile.tar(hostile.file("unique", data=os.urandom(4096)), hostile.file("../" * 12 + "x"))
    below = hostile.tar(hostile.file("below", data=os.urandom(4096)))
    done = send(engine, hostile.image("hostile:load", [below, layer]), "load")
    assert done.returncode != 0
    assert (set(os.listdir(blobs)), set(os.listdir(snapshots))) == before
    assert os.listdir(engine.data / "ingest") == []


def test_attributes_of_overlay_are_taken_from_no_archive(engine: Engine, canary: hostile.Canary) -> None:
    """trusted.overlay.redirect would show any directory of the host's, metacopy any file's content."""
    before = set(os.listdir(engine.data / "snapshots"))
    names = ("redirect", "metacopy", "origin", "opaque", "nlink")
    entries = [hostile.xattr(f"d{name}", hostile.DIRECTORY, f"trusted.overlay.{name}", str(canary)) for name in names]
    entries += [hostile.xattr(f"u{name}", hostile.DIRECTORY, f"user.overlay.{name}", str(canary)) for name in names]
    done = send(engine, hostile.tar(*entries, hostile.file("kept")), "import", "-", "hostile:import")
    check_answer(done, None)
    (made,) = set(os.listdir(engine.data / "snapshots")) - before
    paths = list((engine.data / "snapshots" / made).rglob("*"))
    assert any(path.name == "kept" for path in paths) and len(paths) > len(entries)
    assert [(str(path), name) for path in paths for name in os.listxattr(path) if "overlay" in name] == []


def test_what_links_out_of_an_image_stays_inside_of_the_container(
    engine: Engine, canary: hostile.Canary, busybox_layer: bytes
) -> None:
    layer = hostile.tar(
        hostile.symlink("absolute", str(canary)), hostile.file("absolute/one"),
        hostile.symlink("relative", "../" * 12 + str(canary)[1:]), hostile.file("relative/two"),
    )  # fmt: skip
    check_answer(send(engine, hostile.image("hostile:links", [busybox_layer, layer]), "load"), None)
    script = "echo three > /absolute/three && ls /absolute/ /relative/ && cat /absolute/secret"
    done = engine.docker("run", "--rm", "--network", "none", "hostile:links", "/bin/sh", "-c", script, check=False)
    canary.check(done.stdout, done.stderr)
    assert done.stdout.split() == ["/absolute/:", "one", "three", "two", "/relative/:", "one", "three", "two"]


@pytest.fixture(scope="module")
def busybox_layer(busybox_archive: Path) -> bytes:
    return hostile.layer_of(busybox_archive)
