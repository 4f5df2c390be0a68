"""`tare port`: where a container's ports are published."""

from __future__ import annotations

from tare.cli import terminal
from tare.cli.client import escaped
from tare.cli.failure import Failure
from tare.cli.options import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.cli.main import Call

__all__ = ["port"]

PORT = Command(
    "CONTAINER [PRIVATE_PORT[/PROTO]]", least=1, most=2, aliases="tare container port, tare port"
)
HIGHEST = 65535


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Sorts runs of digits as numbers: 80 before 443."""
    key: list[tuple[int, int, str]] = []
    digits = ""
    for letter in text + "\0":
        if letter.isascii() and letter.isdigit():
            digits += letter
            continue
        if digits:
            key.append((0, int(digits), digits))
            digits = ""
        key.append((1, 0, letter))
    return key


def _place(binding: dict[str, str]) -> str:
    host, number = binding.get("HostIp", ""), binding.get("HostPort", "")
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


def port(call: Call) -> int:
    words = call.parse(PORT).words
    name = words[0].removeprefix("/")
    if not name:
        raise Failure("invalid container name or ID: value is empty")
    found = call.client.get(f"/containers/{escaped(name)}/json")
    ports = (found.get("NetworkSettings") or {}).get("Ports") or {}
    if len(words) == 1:
        lines = [f"{inside} -> {_place(each)}" for inside, places in ports.items() for each in places or ()]
    else:
        number, _, protocol = words[1].partition("/")
        if not (number.isascii() and number.isdigit() and int(number) <= HIGHEST):
            raise Failure(f'Error: invalid port ({number}): strconv.ParseUint: parsing "{number}": invalid syntax')
        lines = [_place(each) for each in ports.get(f"{number}/{protocol or 'tcp'}") or ()]
        if not lines:
            raise Failure(f"Error: No public port '{words[1]}' published for {words[0]}")
    terminal.out(terminal.printable("".join(line + "\n" for line in sorted(lines, key=_natural))))
    return 0
