"""The default profile's decisions, the JSON format, the cache; filters are simulated, one is loaded in a child."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import re
import stat
from pathlib import Path

import pytest
from seccomp_simulator import ALLOW, ENOSYS, EPERM, I386, X32_BIT, run

from tare.engine import capabilities, seccomp
from tare.errors import Invalid
from tare.linux import seccomp as libseccomp

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers below are those of x86")
KERNEL = (6, 18)


def compiled(caps: tuple[str, ...] = capabilities.DEFAULT, kernel: tuple[int, int] = KERNEL) -> bytes:
    found = seccomp.select(seccomp.default_profile(), caps, "amd64", kernel, "SCMP_ARCH_X86_64")
    assert found is not None
    return libseccomp.compile(found.default_action, found.rules, found.architectures)


DEFAULT = compiled()


@pytest.mark.parametrize(
    ("number", "arguments", "answer"),
    [
        (0, (), ALLOW),  # read
        (462, (), ALLOW),  # mseal: younger than many a libseccomp
        (466, (), ALLOW),  # removexattrat
        (165, (), EPERM),  # mount
        (272, (), EPERM),  # unshare
        (308, (), EPERM),  # setns
        (321, (), EPERM),  # bpf
        (425, (), EPERM),  # io_uring_setup
        (428, (), EPERM),  # open_tree
        (442, (), EPERM),  # mount_setattr
        (459, (), EPERM),  # lsm_get_self_attr
        (246, (), EPERM),  # kexec_load
        (250, (), EPERM),  # keyctl
        (298, (), EPERM),  # perf_event_open
        (323, (), EPERM),  # userfaultfd
        (101, (), ALLOW),  # ptrace
        (161, (), ALLOW),  # chroot
        (435, (), ENOSYS),  # clone3
        (467, (), ENOSYS),  # open_tree_attr
        (468, (), ENOSYS),  # file_getattr
        (469, (), ENOSYS),  # file_setattr
        (1000, (), ENOSYS),
        (56, (0x11,), ALLOW),  # clone, SIGCHLD
        (56, (0x00020000,), EPERM),  # CLONE_NEWNS
        (56, (0x10000011,), EPERM),  # CLONE_NEWUSER
        (56, (0x40000000,), EPERM),  # CLONE_NEWNET
        (135, (0,), ALLOW),  # personality
        (135, (8,), ALLOW),
        (135, (0x20000,), ALLOW),
        (135, (0x20008,), ALLOW),
        (135, (0xFFFFFFFF,), ALLOW),
        (135, (0x0040000,), EPERM),  # ADDR_NO_RANDOMIZE
    ],
)
def test_default_decisions(number: int, arguments: tuple[int, ...], answer: int) -> None:
    assert run(DEFAULT, number, arguments=arguments) == answer


@pytest.mark.parametrize("family", range(64))
@pytest.mark.parametrize("high", [0, 1 << 32])
def test_socket_families(family: int, high: int) -> None:
    """The kernel cuts the argument to an int, so the filter must not look at the upper half."""
    answer = EPERM if family in (38, 40) else ALLOW
    assert run(DEFAULT, 41, arguments=(family | high,)) == answer
    assert run(DEFAULT, 359, I386, (family,)) == answer
    assert run(DEFAULT, 41 | X32_BIT, arguments=(family,)) == answer


@pytest.mark.parametrize("function", [0, 1, 2, 3, 18, 0xFFFF])
def test_socketcall_is_no_way_around(function: int) -> None:
    assert run(DEFAULT, 102, I386, (function,)) == ENOSYS


def test_other_architectures() -> None:
    assert run(DEFAULT, 3, I386) == ALLOW  # read
    assert run(DEFAULT, 21, I386) == EPERM  # mount
    assert run(DEFAULT, 462, I386) == ALLOW
    assert run(DEFAULT, 468, I386) == ENOSYS
    assert run(DEFAULT, X32_BIT) == ALLOW
    assert run(DEFAULT, X32_BIT | 165) == EPERM
    assert run(DEFAULT, X32_BIT | 462) == ALLOW
    assert run(DEFAULT, X32_BIT | 900) == ENOSYS
    assert run(DEFAULT, 0, 0xC00000B7) == 0  # aarch64 on x86: kill


@pytest.mark.parametrize(
    ("capability", "numbers"),
    [
        ("CAP_SYS_ADMIN", (165, 166, 272, 308, 321, 428, 435, 442, 459)),
        ("CAP_BPF", (321,)),
        ("CAP_PERFMON", (298,)),
        ("CAP_SYS_MODULE", (175, 176, 313)),
        ("CAP_SYS_NICE", (237, 238, 239)),
        ("CAP_SYS_PTRACE", (312, 438)),
        ("CAP_SYS_TIME", (164, 227)),
        ("CAP_SYSLOG", (103,)),
        ("CAP_DAC_READ_SEARCH", (304,)),
    ],
)
def test_a_capability_opens_its_calls(capability: str, numbers: tuple[int, ...]) -> None:
    program = compiled((*capabilities.DEFAULT, capability))
    for number in numbers:
        assert run(DEFAULT, number) != ALLOW
        assert run(program, number) == ALLOW
    if capability == "CAP_SYS_ADMIN":
        assert run(program, 56, arguments=(0x10000000,)) == ALLOW


def test_conditions_of_kernel_and_dropped_capability() -> None:
    assert run(compiled(kernel=(4, 7)), 101) == EPERM
    assert run(compiled(()), 161) == EPERM  # chroot


def test_the_data_file_is_well_formed() -> None:
    profile = seccomp.default_profile()
    names = [name for group in profile.syscalls or () for name in group.names or ()]
    assert len(set(names)) > 400
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in names)
    text = (Path(str(seccomp.__file__)).parent / "seccomp-default.json").read_text()
    assert all(group.get("comment") for group in json.loads(text)["syscalls"])


def test_a_profile_of_the_users(tmp_path: Path) -> None:
    text = json.dumps(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {"name": "chmod", "action": "SCMP_ACT_ERRNO"},
                {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
                {"names": ["dup2"], "action": "SCMP_ACT_KILL_PROCESS",
                 "args": [{"index": 0, "value": 7, "op": "SCMP_CMP_EQ"},
                          {"index": 0, "value": 9, "op": "SCMP_CMP_EQ"}]},
            ],
        }
    )  # fmt: skip
    path = seccomp.profile([f"seccomp={text}"], capabilities.DEFAULT, str(tmp_path / "cache"))
    program = Path(path).read_bytes()
    assert run(program, 90) == EPERM
    assert run(program, 83) == 0x0005000D
    assert [run(program, 33, arguments=(n,)) for n in (7, 8, 9)] == [0x80000000, ALLOW, 0x80000000]
    assert run(program, 468) == ALLOW  # a permissive default needs no ENOSYS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Decoding seccomp profile failed"),
        ("[]", "Decoding seccomp profile failed"),
        ("[" * 5000, "Decoding seccomp profile failed"),
        ('{"syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}], "defaultAction": "SCMP_ACT_ALLOW"}',
         'unknown or unsupported action "SCMP_ACT_NOTIFY"'),
        ('{"defaultAction": "SCMP_ACT_FOO"}', 'unknown or unsupported action "SCMP_ACT_FOO"'),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_VAX"]}', "unknown architecture"),
        ('{"architectures": ["a"], "archMap": [{"architecture": "b"}]}', "both 'architectures' and 'archMap'"),
        ('{"syscalls": [{"name": "a", "names": ["b"], "action": "x"}]}', "both 'name' and 'names'"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}', "is not supported"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL", '
         '"args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}', "out of range"),
    ],
)  # fmt: skip
def test_bad_profiles_are_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=re.escape(message)):
        seccomp.profile([f"seccomp={text}"], (), str(tmp_path))


def test_when_there_is_no_filter(tmp_path: Path) -> None:
    cache = str(tmp_path / "none")
    assert seccomp.profile(["seccomp=unconfined"], (), cache) == ""
    assert seccomp.profile([], (), cache, privileged=True) == ""
    assert seccomp.profile(["seccomp={}"], (), cache) == ""
    assert not Path(cache).exists()
    explicit = '{"defaultAction": "SCMP_ACT_ALLOW"}'
    assert seccomp.profile([f"seccomp={explicit}"], (), cache, privileged=True).endswith(".bpf")
    assert seccomp.wanted(["seccomp=unconfined", "seccomp=builtin"]) == "builtin"


def test_the_cache(tmp_path: Path) -> None:
    cache = str(tmp_path / "seccomp")
    path = seccomp.profile([], capabilities.DEFAULT, cache)
    assert re.fullmatch(r"[0-9a-f]{64}\.bpf", Path(path).name)
    assert stat.S_IMODE(os.stat(cache).st_mode) == 0o700
    before = os.stat(path)
    assert seccomp.profile([], tuple(reversed(capabilities.DEFAULT)), cache) == path
    assert os.stat(path).st_ino == before.st_ino
    assert seccomp.profile([], ("CAP_CHOWN",), cache) != path
    content = Path(path).read_bytes()
    Path(path).write_bytes(b"")  # as after a crash of a file system without ordered renames
    assert seccomp.profile([], capabilities.DEFAULT, cache) == path
    assert Path(path).read_bytes() == content
    assert sorted(os.listdir(cache)) == sorted(name for name in os.listdir(cache) if name.endswith(".bpf"))


def test_missing_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(libseccomp, "_library", None)
    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(OSError, match="Debian package libseccomp2") as raised:
        libseccomp.compile(ALLOW, [], [])
    assert raised.value.errno == errno.ENOENT


def test_conditional_rule_for_a_name_unknown_to_the_library_is_not_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = libseccomp._resolve
    monkeypatch.setattr(
        libseccomp, "_resolve", lambda lib, token, name: -1 if name.startswith("mseal") else resolve(lib, token, name)
    )
    condition = (libseccomp.Condition(0, 4, 1),)
    program = libseccomp.compile(EPERM, [libseccomp.Rule("mseal", ALLOW, condition)], [])
    assert run(program, 462, arguments=(1,)) == EPERM
    assert run(libseccomp.compile(EPERM, [libseccomp.Rule("mseal", ALLOW)], []), 462) == ALLOW


def test_the_kernel_takes_it() -> None:
    """Loaded in a child with no_new_privs, which needs no privilege."""
    libc = ctypes.CDLL(None, use_errno=True)

    class Fprog(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

    fprog = Fprog(len(DEFAULT) // 8, DEFAULT)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        answers = []
        try:
            assert libc.prctl(38, 1, 0, 0, 0) == 0
            assert libc.syscall(317, 1, 0, ctypes.byref(fprog)) == 0
            for number, argument in ((39, 0), (165, 0), (435, 0), (468, 0), (41, 38), (41, 40), (41, 38 | 1 << 32)):
                ctypes.set_errno(0)
                libc.syscall(ctypes.c_long(number), ctypes.c_long(argument), ctypes.c_long(2), 0, 0, 0)
                answers.append(ctypes.get_errno())
        finally:
            os.write(writer, json.dumps(answers).encode())
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as file:
        found = json.loads(file.read())
    assert found == [0, errno.EPERM, errno.ENOSYS, errno.ENOSYS, errno.EPERM, errno.EPERM, errno.EPERM]
