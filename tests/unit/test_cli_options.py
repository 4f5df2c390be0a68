"""Flags as pflag reads them, with the texts of Docker 28's client (recorded from it)."""

from __future__ import annotations

import pytest

from tare.cli.createflags import CREATE, RUN
from tare.cli.failure import Failure, UsageError
from tare.cli.helptext import command_help, wrapped
from tare.cli.options import Command, Flags, integer, parse, quoted, unsigned


def run(*argv: str) -> Flags:
    return parse(RUN, "tare run", argv)[0]


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--rm", "x"], "rm", True),
        (["--rm=false", "x"], "rm", False),
        (["--rm=T", "x"], "rm", True),
        (["--name", "a", "x"], "name", "a"),
        (["--name=a=b", "x"], "name", "a=b"),
        (["--name=", "x"], "name", ""),
        (["-p", "80", "x"], "publish", ["80"]),
        (["-p80", "x"], "publish", ["80"]),
        (["-p=80", "x"], "publish", ["80"]),
        (["-p80", "-p", "81", "x"], "publish", ["80", "81"]),
        (["-it", "x"], "tty", True),
        (["-it=false", "x"], "tty", False),
        (["-itp80", "x"], "publish", ["80"]),
        (["-h", "host", "x"], "hostname", "host"),
        (["-m", "1g", "x"], "memory", 1 << 30),
        (["--cpu-shares", "0x10", "x"], "cpu-shares", 16),
        (["--cpu-shares", "010", "x"], "cpu-shares", 8),
        (["--oom-score-adj=-5", "x"], "oom-score-adj", -5),
    ],
)
def test_values(argv: list[str], name: str, value: object) -> None:
    flags = run(*argv)
    assert flags.values[name] == value
    assert flags.words == ["x"]


def test_run_stops_at_the_first_word_and_stop_does_not() -> None:
    assert run("-d", "image", "ls", "-d", "--rm", "--frob").words == ["image", "ls", "-d", "--rm", "--frob"]
    stop = Command("", (("time", "t", "int", "", "x"),))
    flags, _ = parse(stop, "tare stop", ["a", "-t", "5", "b"])
    assert flags.words == ["a", "b"]
    assert flags.number("time") == 5


def test_double_dash_ends_the_flags() -> None:
    assert run("--rm", "--", "-x", "--rm").words == ["-x", "--rm"]


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--frob"], "unknown flag: --frob"),
        (["-z", "x"], "unknown shorthand flag: 'z' in -z"),
        (["-itx", "y"], "unknown shorthand flag: 'x' in -x"),
        (["--cpus"], "flag needs an argument: --cpus"),
        (["-m"], "flag needs an argument: 'm' in -m"),
        (["---x", "y"], "bad flag syntax: ---x"),
        (["--=x", "y"], "bad flag syntax: --=x"),
        (["--cpus=abc", "x"], 'invalid argument "abc" for "--cpus" flag: failed to parse abc as a rational number'),
        (
            ["--rm=maybe", "x"],
            'invalid argument "maybe" for "--rm" flag: strconv.ParseBool: parsing "maybe": invalid syntax',
        ),
        (["-m", "abc", "x"], 'invalid argument "abc" for "-m, --memory" flag: invalid size: \'abc\''),
        (
            ["--blkio-weight=99999999", "x"],
            'invalid argument "99999999" for "--blkio-weight" flag: '
            'strconv.ParseUint: parsing "99999999": value out of range',
        ),
        (["-e", "=3", "x"], 'invalid argument "=3" for "-e, --env" flag: invalid environment variable: =3'),
        (
            ["--health-interval=5", "x"],
            'invalid argument "5" for "--health-interval" flag: time: missing unit in duration "5"',
        ),
    ],
)
def test_wrong_flags(argv: list[str], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        run(*argv)
    usage = "\n\nUsage:  tare run [OPTIONS] IMAGE [COMMAND] [ARG...]\n\nRun 'tare run --help' for more information"
    assert str(caught.value) == text + usage
    assert caught.value.status == 125


@pytest.mark.parametrize(
    ("command", "path", "argv", "text"),
    [
        (RUN, "tare run", [], "tare: 'tare run' requires at least 1 argument"),
        (Command("A B", least=2, most=2), "tare rename", ["a"], "tare: 'tare rename' requires 2 arguments"),
        (Command("[OPTIONS]", most=0), "tare ps", ["x"], "tare: 'tare ps' accepts no arguments"),
        (Command("A", least=1, most=1), "tare pull", [], "tare: 'tare pull' requires 1 argument"),
        (Command("A", most=1), "tare q", ["a", "b"], "tare: 'tare q' requires at most 1 argument"),
    ],
)
def test_number_of_words(command: Command, path: str, argv: list[str], text: str) -> None:
    with pytest.raises(Failure) as caught:
        parse(command, path, argv)
    assert str(caught.value).startswith(text + f"\n\nUsage:  {path} {command.usage}\n\n")
    assert caught.value.status == 1


def test_min_args_say_see_and_exact_args_say_run() -> None:
    with pytest.raises(Failure, match=r"See 'tare run --help' for more information$"):
        run()
    with pytest.raises(Failure, match=r"Run 'tare x --help' for more information$"):
        parse(Command("A", least=1, most=1), "tare x", [])


def test_help_needs_no_words_and_comes_after_flag_errors() -> None:
    assert run("--help").on("help")
    assert not run("--help=false", "x").on("help")
    with pytest.raises(UsageError):
        run("--help", "--frob")


def test_short_h_is_help_where_nothing_else_has_it() -> None:
    flags, notes = parse(Command("A", least=1), "tare stop", ["-h"])
    assert flags.on("help")
    assert notes == ["Flag shorthand -h has been deprecated, use --help"]


def test_deprecated_flags_are_told() -> None:
    command = Command("", (("time", "", "int", "", ""),), deprecated={"time": "use --timeout instead"})
    assert parse(command, "tare stop", ["--time", "3"])[1] == ["Flag --time has been deprecated, use --timeout instead"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5), ("-5", -5), ("+5", 5), ("0x1F", 31), ("0b11", 3), ("0o17", 15), ("017", 15), ("1_0", 10)],
)
def test_integer(text: str, value: int) -> None:
    assert integer(text) == value


@pytest.mark.parametrize("text", ["", "x", "1.5", "08", "--5", " 5", "5 ", "\u0665", "9" * 5000, "9223372036854775808"])
def test_not_an_integer(text: str) -> None:
    with pytest.raises(ValueError, match="strconv.ParseInt"):
        integer(text)


def test_unsigned_has_no_sign() -> None:
    assert unsigned("65535", 16) == 65535
    for text in ("-1", "+1", "65536"):
        with pytest.raises(ValueError, match="strconv.ParseUint"):
            unsigned(text, 16)


def test_quoted() -> None:
    assert quoted('a"b\\c\x1b\n') == '"a\\"b\\\\c\\x1b\\n"'


def test_tables_are_sound() -> None:
    for command in (RUN, CREATE):
        names = [row[0] for row in command.rows]
        shorts = [row[1] for row in command.rows if row[1]]
        assert len(set(names)) == len(names)
        assert len(set(shorts)) == len(shorts)
        assert set(command.checks) <= set(names)


def test_help_layout() -> None:
    """Columns as in `docker stop --help` at 80 columns."""
    rows = (
        ("signal", "s", "string", "", "Signal to send to the container"),
        ("timeout", "t", "int", "", "Seconds to wait before killing the container"),
        ("secret", "", "int", "", ""),
    )
    command = Command("[OPTIONS] CONTAINER [CONTAINER...]", rows, aliases="tare container stop, tare stop")
    assert command_help(command, "tare stop", "Stop one or more running containers", 80) == (
        "Usage:  tare stop [OPTIONS] CONTAINER [CONTAINER...]\n\n"
        "Stop one or more running containers\n\n"
        "Aliases:\n  tare container stop, tare stop\n\n"
        "Options:\n"
        "  -s, --signal string   Signal to send to the container\n"
        "  -t, --timeout int     Seconds to wait before killing the container\n"
    )


def test_help_wraps_with_a_hanging_indent() -> None:
    text = "Run an init inside the container that forwards signals and reaps processes"
    assert wrapped(41, 79, text) == (
        "Run an init inside the container\n" + " " * 41 + "that forwards signals and reaps\n" + " " * 41 + "processes"
    )
