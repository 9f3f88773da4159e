"""Refusals of `pyvmm run`: one clear message, no traceback, and the exit code of the kind."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.boot.elves import Elf, Phdr
from tests.e2e.conftest import FIRST_S, Pyvmm, message

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(FIRST_S), pytest.mark.usefixtures("emulated")]

GUEST = Path(__file__).parents[2] / "pyvmm/guests/hello"


def elf_of_32_bits() -> bytes:
    """Return the header of an ELF for 32-bit Arm."""
    return struct.pack("<4sBBBB8xHHIIIIIHHHHHH", b"\x7fELF", 1, 1, 1, 0, 2, 40, 1,
                       0x8000, 52, 0, 0, 52, 32, 0, 40, 0, 0) + bytes(64)  # fmt: skip


IMAGES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty"),
    "truncated": (lambda: GUEST.read_bytes()[:3000], "truncated"),
    "only a header": (lambda: GUEST.read_bytes()[:40], "truncated"),
    "32-bit Arm": (elf_of_32_bits, "32-bit"),
    "for x86": (lambda: Elf(machine=62).build(), "x86"),
    "outside RAM": (lambda: Elf(phdrs=(Phdr(vaddr=0x1000),), entry=0x1000).build(), "RAM"),
    "larger than RAM": (lambda: Elf(phdrs=(Phdr(memsz=8 << 30),)).build(), "RAM"),
    "flat, larger than RAM": (lambda: bytes(5 << 20), "RAM"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_bad_image_is_refused(kind: str, pyvmm: Pyvmm, tmp_path: Path) -> None:
    make, words = IMAGES[kind]
    path = tmp_path / "image"
    path.write_bytes(make())

    done = pyvmm("run", str(path), "-m", "4")

    assert done.returncode == 2
    assert words in message(done)
    assert str(path) in done.stderr


@pytest.mark.parametrize(
    ("content", "what", "hint"),
    [
        (gzip.compress(b"070701" + bytes(200)), "(gzip) is an initramfs", "give it with -i"),
        (b"hsqs" + bytes(600), "a squashfs file system", "give it with -d"),
        (b"pyvmm snapshot 1\n", "a snapshot of pyvmm", "`pyvmm restore`"),
    ],
    ids=["initramfs", "disk", "snapshot"],
)
def test_run_refuses_a_file_of_another_kind_with_its_option(
    content: bytes, what: str, hint: str, pyvmm: Pyvmm, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)

    done = pyvmm("run", str(path))

    assert done.returncode == 2
    assert what in message(done)
    assert hint in done.stderr


def test_program_of_this_machine_is_refused(pyvmm: Pyvmm, tmp_path: Path) -> None:
    copy = tmp_path / "true"
    copy.write_bytes(Path("/bin/true").read_bytes())

    done = pyvmm("run", str(copy))

    assert done.returncode == 2
    assert str(copy) in message(done)


def test_missing_image_is_refused_with_the_names_of_bundled_guests(
    pyvmm: Pyvmm, tmp_path: Path
) -> None:
    done = pyvmm("run", str(tmp_path / "nothing"))

    assert done.returncode == 2
    assert f"{tmp_path}/nothing" in message(done)
    assert "sve-vls" in done.stderr


def test_directory_is_refused(pyvmm: Pyvmm, tmp_path: Path) -> None:
    done = pyvmm("run", str(tmp_path))

    assert done.returncode == 2
    assert str(tmp_path) in message(done)


@pytest.mark.parametrize("path", ["/etc/passwd", "/bin/true", "/usr/lib/os-release"])
def test_file_that_the_emulated_host_cannot_see_is_refused(path: str, pyvmm: Pyvmm) -> None:
    done = pyvmm("run", path)

    assert done.returncode == 3
    real = os.path.realpath(path)
    assert f"it does not see {real}" in message(done)
    assert "copy" in done.stderr


def test_output_file_that_would_stay_in_the_emulated_host_is_refused(pyvmm: Pyvmm) -> None:
    done = pyvmm("run", "hello", "--dump-dtb", "/etc/pyvmm-test.dtb")

    assert done.returncode == 3
    assert "it does not see /etc/pyvmm-test.dtb" in message(done)
    assert not Path("/etc/pyvmm-test.dtb").exists()


def test_current_directory_that_the_emulated_host_cannot_see_is_refused(pyvmm: Pyvmm) -> None:
    done = pyvmm("run", "hello", cwd="/usr/lib")

    assert done.returncode == 3
    assert "run pyvmm from another directory" in message(done)


def test_file_of_the_user_wins_over_a_bundled_guest_of_the_same_name(
    pyvmm: Pyvmm, tmp_path: Path
) -> None:
    (tmp_path / "hello").write_bytes(b"")

    done = pyvmm("run", "hello", cwd=tmp_path)

    assert done.returncode == 2
    assert "empty" in message(done)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("-c", "0"), 2, "at least 1 vCPU"),
        (("-c", "-1"), 2, "at least 1 vCPU"),
        (("-c", "100000"), 3, "100000"),
        (("-c", "1.5"), 2, "not a valid integer"),
        (("-m", "0"), 2, "needs memory"),
        (("-m", "8P"), 3, "8 PiB of RAM needs 54 guest physical address bits"),
        (("-m", "-5"), 2, "-5"),
        (("-m", "lots"), 2, "lots"),
        (("--timeout", "0"), 2, "above 0"),
        (("--timeout", "nan"), 2, "above 0"),
        (("--sve", "--no-sve"), 2, "contradict"),
        (("--sve-vls=128", "--sve-max-vl=256"), 2, "give one"),
        (("--host-kernel", "4.4"), 2, "4.4"),
        (("--host-qemu", "1.0"), 2, "1.0"),
        (("--host-cpu", ""), 2, "not a CPU"),
        (("--host", "remote"), 2, "remote"),
    ],
)
def test_bad_number_or_choice_is_refused(
    options: tuple[str, ...], code: int, words: str, pyvmm: Pyvmm
) -> None:
    done = pyvmm("run", "hello", *options)

    assert words in message(done)
    assert done.returncode == code


def test_run_warns_once_when_memory_exceeds_the_hosts(pyvmm: Pyvmm) -> None:
    meminfo = pyvmm("host", "exec", "--", "cat", "/proc/meminfo").stdout.split()
    host = int(meminfo[meminfo.index("MemTotal:") + 1]) >> 10

    done = pyvmm("run", "hello", "-m", f"{2 * host}M")

    assert done.stdout.startswith("Hello from EL1")
    assert done.returncode == 0
    assert message_only(done.stderr).startswith(f"pyvmm: {2 * host} MiB of guest memory, and ")
    assert "out-of-memory killer" in done.stderr
    assert pyvmm("run", "hello", "-m", f"{host - 1}M").stderr == ""


def message_only(text: str) -> str:
    """Return a text of one line."""
    (line,) = text.splitlines()
    return line


DISKS: dict[str, tuple[int, str]] = {  # the option's value, with FILE for a file of 1 KiB
    "-d FILE.none": (2, "No such file or directory"),
    "-d .": (2, "is a directory"),
    "-d FILE,rw": (2, "'rw' is not one of ro, direct"),
    "-d FILE -d FILE": (3, "is in use"),
    "--pmem FILE": (2, "is not a multiple of 2 MiB"),
    "--pmem FILE.none": (2, "No such file or directory"),
}


@pytest.mark.parametrize("options", DISKS)
def test_disk_that_cannot_be_used_is_refused(options: str, pyvmm: Pyvmm, tmp_path: Path) -> None:
    code, words = DISKS[options]
    file = tmp_path / "disk"
    file.write_bytes(bytes(1024))
    given = [word.replace("FILE", str(file)) for word in options.split()]

    done = pyvmm("run", "hello", *given)

    assert done.returncode == code, done.stderr
    assert words in message(done)
