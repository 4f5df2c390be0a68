"""Rules of the house that hold for all sources at once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src/tare"
SOURCES = sorted(PACKAGE.rglob("*.py"))


def names(path: Path) -> list[str]:
    return [str(file.relative_to(PACKAGE)) for file in sorted(path.rglob("*.py"))]


def lines(file: Path) -> int:
    return len(file.read_text().splitlines())


def references(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a module imports or reads from a module: "pwd", "os.fork"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def users(*wanted: str) -> set[str]:
    """Files, relative to the package, that refer to one of these names."""
    found = set()
    for file in SOURCES:
        if set(wanted) & set(references(ast.parse(file.read_text()))):
            found.add(str(file.relative_to(PACKAGE)))
    return found


def test_the_house_is_looked_at() -> None:
    assert len(SOURCES) > 100 and {"daemon.py", "runtime/init.py", "cli/main.py"} <= set(names(PACKAGE))
    tree = ast.parse("import os\nfrom os import fork\nimport pwd as p\nos.fork()\n")
    assert {"os.fork", "pwd"} <= set(references(tree))


def test_runtime_stays_small() -> None:
    sizes = {file.name: lines(file) for file in (PACKAGE / "runtime").glob("*.py")}
    assert sum(sizes.values()) <= 2500, (sum(sizes.values()), sizes)


@pytest.mark.parametrize("file", SOURCES, ids=names(PACKAGE))
def test_file_is_readable_in_one_sitting(file: Path) -> None:
    assert lines(file) <= 600


def test_one_file_forks() -> None:
    forks = [f"{module}.{name}" for module in ("os", "posix") for name in ("fork", "forkpty")]
    assert users(*forks) == {"linux/clone.py"}


def test_nobody_asks_the_name_service() -> None:
    """NSS may load a library of the image (CVE-2019-14271). getaddrinfo outside the fork path is the network's word."""
    assert users("pwd", "grp", "spwd", "os.path.expanduser") == set()
    resolvers = users("socket.getaddrinfo", "socket.gethostbyname", "_socket.getaddrinfo")
    assert not {name for name in resolvers if name.startswith(("runtime/", "linux/", "cgroups/", "engine/", "oci_runtime/"))}
