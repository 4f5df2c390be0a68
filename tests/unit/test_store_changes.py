"""`--change` instructions on an image's config."""

from __future__ import annotations

import pytest

from tare.errors import Invalid
from tare.oci.image import ContainerConfig
from tare.store.changes import apply


def changed(*lines: str, **fields: object) -> ContainerConfig:
    return apply(ContainerConfig(**fields), lines)  # type: ignore[arg-type]


def test_commands() -> None:
    assert changed('CMD ["a", "b c"]').cmd == ("a", "b c")
    assert changed("cmd echo $HOME").cmd == ("/bin/sh", "-c", "echo $HOME")
    assert changed("CMD a", shell=("/bin/bash", "-ec")).cmd == ("/bin/bash", "-ec", "a")
    assert changed("ENTRYPOINT []").entrypoint == ()
    assert changed('CMD ["a", 1]').cmd == ("/bin/sh", "-c", '["a", 1]')


def test_entrypoint_drops_an_inherited_command_only() -> None:
    assert changed("ENTRYPOINT x", cmd=("old",)).cmd is None
    assert changed('CMD ["new"]', "ENTRYPOINT x", cmd=("old",)).cmd == ("new",)


@pytest.mark.parametrize(
    ("line", "env"),
    [
        ("ENV A=1 B=2", ("A=1", "B=2")),
        ("ENV A hello  world", ("A=hello  world",)),
        ('ENV A="x y" B=\'$C\'', ("A=x y", "B=$C")),
        (r"ENV A=x\ y", ("A=x y",)),
        ("ENV A=", ("A=",)),
    ],
)
def test_env(line: str, env: tuple[str, ...]) -> None:
    assert changed(line).env == env


def test_variables_come_from_the_config() -> None:
    inherited = ("PATH=/bin", "E=")
    assert changed("ENV PATH=$PATH:/x", env=inherited).env == ("PATH=/bin:/x", "E=")
    assert changed('ENV P="${PATH}${E:-none}${PATH:+yes}$NONE\\$X"', env=inherited).env == (
        *inherited,
        "P=/binnoneyes$X",
    )
    # All words of one instruction see the state before it.
    assert changed("ENV A=1 B=$A").env == ("A=1", "B=")


def test_the_other_instructions() -> None:
    config = changed(
        "LABEL a=b 'c d'=\"e f\"",
        "EXPOSE 80 443/TCP 53-54/udp",
        "USER 1000:1000",
        "WORKDIR /a",
        "WORKDIR b/../c",
        "VOLUME /x /y",
        'VOLUME ["/z w"]',
        "STOPSIGNAL SIGRTMIN+3",
        "ONBUILD RUN make",
        "HEALTHCHECK --interval=1m30s --retries=3 CMD curl -f http://x",
        "# a comment",
        "",
    )
    assert config.labels == {"a": "b", "c d": "e f"}
    assert config.exposed_ports == {"80/tcp": {}, "443/tcp": {}, "53/udp": {}, "54/udp": {}}
    assert (config.user, config.working_dir, config.stop_signal) == ("1000:1000", "/a/c", "SIGRTMIN+3")
    assert config.volumes == {"/x": {}, "/y": {}, "/z w": {}}
    assert config.on_build == ("RUN make",)
    assert config.healthcheck is not None
    assert config.healthcheck.test == ("CMD-SHELL", "curl -f http://x")
    assert (config.healthcheck.interval, config.healthcheck.retries) == (90 * 10**9, 3)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("RUN rm -rf /", "run is not a valid change command"),
        ("FROM x", "from is not a valid change command"),
        ("CMD", "CMD requires at least one argument"),
        ("ENV =x", "ENV names can not be blank"),
        ("ENV A=1 B", "can't find = in \"B\""),
        ("EXPOSE 99999", "invalid containerPort: 99999"),
        ("EXPOSE 1-99999999999", "invalid containerPort"),
        ("ONBUILD ONBUILD x", "Chaining ONBUILD"),
        ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
        ("ENV A='x", "matching quote"),
        ("HEALTHCHECK --interval=1x CMD a", "invalid duration"),
        ("HEALTHCHECK x", "Unknown type"),
        ("STOPSIGNAL ../x", "invalid signal"),
        ("LABEL " + "x" * 70_000, "longer than"),
    ],
)
def test_refusals(line: str, text: str) -> None:
    with pytest.raises(Invalid, match=text.replace("(", r"\(")):
        changed(line)


def test_doubling_a_variable_ends() -> None:
    with pytest.raises(Invalid, match="larger than"):
        changed("ENV A=" + "x" * 100, *["ENV A=$A$A"] * 40)
