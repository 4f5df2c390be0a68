"""Options of tared: command line, daemon.json, and their checks. Temp files only."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tare import config
from tare.config import Host, Settings
from tare.errors import Invalid


def load(*argv: str, document: Any = None, directory: Path | None = None) -> Settings:
    if document is None:
        return config.load(["--config-file", "/dev/null", *argv])
    assert directory is not None
    path = directory / "daemon.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return config.load(["--config-file", str(path), *argv])


def test_defaults() -> None:
    settings = load()
    assert settings.data_root == "/var/lib/tare"
    assert settings.exec_root == "/run/tare"
    assert settings.hosts == [Host("unix", "/run/tare.sock")]
    assert settings.level == "info"
    assert settings.cgroup_parent == "/tare"


def test_version_is_the_project_s() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["version"] == config.VERSION


def test_spellings_of_options() -> None:
    settings = load(
        "-H", "fd://", "-H=unix:///a", "--host=tcp://127.0.0.1:1", "-Htcp://[::1]:2", "--data-root", "/d", "-D",
        "--tlsverify", "--tlscacert=/ca", "--tlscert=/cert", "--tlskey=/key",
    )  # fmt: skip
    assert settings.hosts == [Host("fd", ""), Host("unix", "/a"), Host("tcp", "127.0.0.1", 1), Host("tcp", "::1", 2)]
    assert settings.data_root == "/d"
    assert settings.level == "debug"
    assert load("--debug=false", "-l", "warn").level == "warn"


def test_maps_and_limits() -> None:
    settings = load("--log-opt", "max-size=1m", "--log-opt=max-file=2", "--default-ulimit", "nofile=1024:2048")
    assert settings.log_opt == {"max-size": "1m", "max-file": "2"}
    assert settings.default_ulimit == {"nofile": (1024, 2048)}


def test_file(tmp_path: Path) -> None:
    document = {
        "data-root": "/d",
        "hosts": ["unix:///x.sock"],
        "debug": True,
        "log-opts": {"max-size": "5m"},
        "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 1, "Hard": 2}},
        "shutdown-timeout": 3,
    }
    settings = load(document=document, directory=tmp_path)
    assert settings.data_root == "/d"
    assert settings.hosts == [Host("unix", "/x.sock")]
    assert settings.level == "debug"
    assert settings.default_ulimit == {"nofile": (1, 2)}
    assert settings.shutdown_timeout == 3
    assert load(document="", directory=tmp_path).data_root == "/var/lib/tare"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"storage": 1, "x": 2}, "the following directives don't match any configuration option: storage, x"),
        ({"debug": "yes"}, "debug is not true or false"),
        ({"hosts": "unix:///x"}, "hosts is not a list of strings"),
        ({"shutdown-timeout": True}, "shutdown-timeout is not a number"),
        ({"default-ulimits": {"nofile": {"Soft": 3}}}, "nofile needs Soft and Hard"),
        ('{"debug": true, "debug": false}', "a key stands there twice"),
        ("[]", "not a JSON object"),
        ("{", "Expecting property name"),
        ("[" * 100_000, "daemon.json"),
        ("x" * (1024 * 1024 + 1), "larger than"),
    ],
)
def test_bad_files(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(Invalid) as caught:
        load(document=document, directory=tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_file_that_everybody_may_write(tmp_path: Path) -> None:
    (tmp_path / "daemon.json").write_text("{}")
    (tmp_path / "daemon.json").chmod(0o666)
    with pytest.raises(Invalid, match="everybody may write"):
        config.load(["--config-file", str(tmp_path / "daemon.json")])


def test_file_that_is_not_there(tmp_path: Path) -> None:
    assert config.read_file(str(tmp_path / "none"), required=False) == {}
    with pytest.raises(Invalid, match="no such file"):
        config.load(["--config-file", str(tmp_path / "none")])


def test_option_on_both_sides(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="both as a flag and in the configuration file: data-root, host$"):
        load("-H", "fd://", "--data-root=/d", document={"hosts": ["fd://"], "data-root": "/d"}, directory=tmp_path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--nope"], "unknown flag: --nope"),
        (["serve"], "unexpected argument: serve"),
        (["--data-root"], "flag needs an argument: --data-root"),
        (["--data-root", "relative"], "not an absolute path"),
        (["--debug=maybe"], "neither true nor false"),
        (["--log-level", "loud"], "invalid logging level: loud"),
        (["--log-driver", "syslog"], "log driver syslog is not offered"),
        (["--log-opt", "x"], "not of the form name=value"),
        (["--shutdown-timeout", "-1"], "not a number"),
        (["--default-ulimit", "nofile=9:3"], "soft limit must be less than or equal to hard limit"),
        (["--default-ulimit", "nofile"], "invalid ulimit argument"),
        (["--bip", "10.0.0"], "not an address"),
        (["--bip", "10.0.0.1/24", "--bridge", "br0"], "exclude each other"),
        (["--cgroup-parent", "/a/../b"], "not an absolute cgroup path"),
        (["-H", "npipe://x"], "only unix://, tcp:// and fd:// are served"),
        (["-H", "tcp://127.0.0.1"], "no port"),
        (["-H", "unix://x"], "not absolute"),
        (["-H", "tcp://0.0.0.0:2375"], "refused without --tlsverify"),
        (["-H", "tcp://:2375"], "refused without --tlsverify"),
        (["-H", "tcp://example.org:2375"], "refused without --tlsverify"),
        (["-H", "tcp://127.0.0.1:2375"], "refused without --tlsverify"),
        (["-H", "tcp://localhost:2375"], "refused without --tlsverify"),
        (["--tlsverify"], "--tlsverify needs"),
    ],
)
def test_refusals(argv: list[str], message: str) -> None:
    with pytest.raises(Invalid) as caught:
        load(*argv)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_usage_names_every_option() -> None:
    text = config.usage()
    assert all(f"--{option.name} " in text for option in config.OPTIONS)
