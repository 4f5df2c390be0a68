"""The table of commands, help, unknown words, and the launcher bin/tare."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_fake_daemon import HANG_S, SOURCE, environment, tare

from tare.cli.main import COMMANDS, GROUPS

LAUNCHER = SOURCE.parent / "bin/tare"


def entries() -> list[tuple[str, str]]:
    named = list(COMMANDS.values()) + [entry for group in GROUPS.values() for entry in group[1].values()]
    return sorted({(module, function) for module, function, _ in named})


@pytest.mark.parametrize(("module", "function"), entries())
def test_every_command_exists(module: str, function: str) -> None:
    if not (SOURCE / f"tare/cli/{module}.py").exists():
        pytest.skip(f"{module}.py is not written")
    assert callable(getattr(importlib.import_module(f"tare.cli.{module}"), function))


def test_bare_command_prints_help_on_stderr() -> None:
    done = tare(None)
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.startswith(b"Usage:  tare [OPTIONS] COMMAND\n")
    assert tare(None, "--help").stdout == done.stderr == tare(None, "help").stdout


def test_help_of_a_command() -> None:
    done = tare(None, "run", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(b"Usage:  tare run [OPTIONS] IMAGE [COMMAND] [ARG...]\n\nCreate and run")
    assert b"  -m, --memory bytes   " in done.stdout
    assert b"  -h, --hostname string  " in done.stdout
    assert tare(None, "help", "run").stdout == done.stdout
    assert tare(None, "container", "run", "--help").stdout.startswith(b"Usage:  tare container run [OPTIONS]")


def test_groups() -> None:
    assert tare(None, "container").stderr.startswith(b"Usage:  tare container COMMAND\n\nManage containers\n")
    done = tare(None, "container", "frob")
    assert done.returncode == 1
    assert done.stderr.decode() == (
        "tare: unknown command: tare container frob\n\nUsage:  tare container\n\n"
        "Run 'tare container --help' for more information\n"
    )


def test_unknown_words() -> None:
    done = tare(None, "frob")
    assert done.returncode == 1
    assert done.stderr == b"tare: unknown command: tare frob\n\nRun 'tare --help' for more information\n"
    assert tare(None, "--frob", "ps").returncode == 125
    assert tare(None, "help", "frob").stderr == b"unknown help topic: frob\n"
    done = tare(None, "-H", "foo://bar", "stop", "x")
    assert done.returncode == 1
    assert b"invalid bind address format: foo://bar" in done.stderr


def test_texts_cannot_steer_the_terminal() -> None:
    done = tare(None, "fr\x1b[2Job")
    assert b"\x1b" not in done.stderr
    assert b"fr\\x1b[2Job" in done.stderr


def launched(script: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([str(script), *words], capture_output=True, env=environment(), timeout=HANG_S, check=False)


def installed(prefix: Path) -> Path:
    """As pip lays it out: <prefix>/bin/{tare,python}, <prefix>/lib/pythonX.Y/site-packages/tare."""
    packages = prefix / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    shutil.copytree(SOURCE / "tare/cli", packages / "tare/cli", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(SOURCE / "tare/__init__.py", packages / "tare/__init__.py")
    (prefix / "bin").mkdir()
    script = prefix / "bin/tare"
    shutil.copy(LAUNCHER, script)
    (prefix / "bin/python").symlink_to(sys.executable)
    return script


def test_launcher_in_the_source_tree() -> None:
    assert launched(LAUNCHER, "help").stdout.startswith(b"Usage:  tare [OPTIONS] COMMAND")


def test_launcher_in_a_prefix(tmp_path: Path) -> None:
    script = installed(tmp_path / "a b'c")
    done = launched(script, "run", "--name", "it's $x", "--frob")
    assert done.returncode == 125
    assert done.stderr.startswith(b"unknown flag: --frob")
    link = tmp_path / "link"
    link.symlink_to(script)
    assert launched(link, "help").stdout.startswith(b"Usage:  tare")


def test_launcher_falls_back_to_site(tmp_path: Path) -> None:
    """An editable installation has no package below the prefix, only a .pth file that `site` reads."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True, timeout=HANG_S)
    packages = next((tmp_path / "venv/lib").glob("python3.*/site-packages"))
    (packages / "tare.pth").write_text(f"{SOURCE}\n")
    script = tmp_path / "venv/bin/tare"
    shutil.copy(LAUNCHER, script)
    assert launched(script, "help").stdout.startswith(b"Usage:  tare")


def test_launcher_is_left_alone_by_pip() -> None:
    assert LAUNCHER.read_bytes().startswith(b"#!/bin/sh\n")
    assert LAUNCHER.stat().st_mode & 0o111 == 0o111
