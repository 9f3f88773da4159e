"""Images as people make them: ELF files of every kind of link, and unified kernel images."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import linux
from tests.boot import linked
from tests.boot.packing import efi_program
from tests.linux import PROMPT, Session

# The first command may have to make and boot the emulated host.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def run(pyvmm_cmd: list[str], *options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*pyvmm_cmd, "run", "--timeout", "60", "-c", "1", "-m", "256", *map(str, options)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)


@pytest.mark.parametrize("kind", linked.BOOTS)
def test_linked_elf_runs_with_its_data(
    kind: str, cross_gcc: Path, pyvmm_cmd: list[str], tmp_path: Path
) -> None:
    done = run(pyvmm_cmd, linked.link(cross_gcc, linked.BOOTS[kind], tmp_path / kind))

    assert (done.stdout, done.returncode) == ("P\n", linked.CODE), done.stderr


def test_elf_for_qemus_virt_machine_is_refused(
    cross_gcc: Path, pyvmm_cmd: list[str], tmp_path: Path
) -> None:
    done = run(pyvmm_cmd, linked.link(cross_gcc, linked.QEMUS, tmp_path / "virt.elf"))

    assert done.returncode == 2
    assert "virt.elf was built for QEMU's virt machine" in done.stderr
    assert "hint: link it to run at 0x80080000" in done.stderr


@pytest.mark.parametrize("word", ["-static", "-static-pie", "-pie"])
def test_program_for_linux_is_refused(
    word: str, cross_gcc: Path, pyvmm_cmd: list[str], tmp_path: Path
) -> None:
    done = run(pyvmm_cmd, linked.link_program(cross_gcc, tmp_path / "program", word))

    assert done.returncode == 2
    assert "program is a program for Linux, not a kernel" in done.stderr
    assert "hint: run it from an initrd" in done.stderr


@pytest.fixture
def uki(built: Path, tmp_path: Path) -> Path:
    """Return a UKI whose command line tells the guest `exit` its exit code."""
    path = tmp_path / "uki.efi"
    sections = (
        (b".osrel", b'PRETTY_NAME="A System 1"\n'),
        (b".cmdline", b"exit=42\n"),
        (b".initrd", b"unused"),
        (b".linux", (built / "exit").read_bytes()),
    )
    path.write_bytes(efi_program(*sections))
    return path


def test_uki_runs_with_its_command_line_and_shows_its_system(
    uki: Path, pyvmm_cmd: list[str]
) -> None:
    done = run(pyvmm_cmd, "-v", uki)

    assert done.returncode == 42, done.stderr
    assert f"image   {uki} (ELF in unified kernel image), entry 0x80080000" in done.stderr
    assert "image   A System 1\n" in done.stderr


def test_options_replace_the_parts_of_a_uki_with_a_note(
    uki: Path, pyvmm_cmd: list[str], tmp_path: Path
) -> None:
    initrd, dtb = tmp_path / "initrd", tmp_path / "dtb"
    initrd.write_bytes(b"070701 of the user")

    done = run(pyvmm_cmd, "-p", "exit=3", "-i", initrd, "--dump-dtb", dtb, uki)

    assert done.returncode == 3, done.stderr
    assert f"pyvmm: -i replaces the initrd in {uki}\n" in done.stderr
    assert f"pyvmm: --params replaces the command line in {uki}: exit=42\n" in done.stderr
    assert b"exit=3\0" in dtb.read_bytes()


def test_note_about_an_image_is_not_repeated_at_a_reboot(uki: Path, pyvmm_cmd: list[str]) -> None:
    command = [*pyvmm_cmd, "run", "-v", "--reboot", "-c", "1", "-p", "reset", str(uki)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        said = ""
        while said.count(f"pyvmm: image   {uki} ") < 3:
            line = process.stderr.readline()
            assert line, said
            said += line
        process.terminate()
        process.communicate()

    assert said.count("--params replaces the command line") == 1


# Debian's kernels


@pytest.fixture(scope="module")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "initrd"
    path.write_bytes(linux.initramfs())
    return path


FLAVOURS = [
    ("linux-image-arm64-16k", "trixie", "16k"),
    ("linux-image-rt-arm64", "trixie", "rt"),
    ("linux-image-cloud-arm64", "trixie", "cloud"),
    ("linux-image-rt-arm64", "bookworm", "rt"),
    ("linux-image-cloud-arm64", "bookworm", "cloud"),
]


@pytest.mark.matrix
@pytest.mark.parametrize(("package", "suite", "word"), FLAVOURS)
def test_kernel_of_another_flavour_boots(
    package: str, suite: str, word: str, pyvmm_cmd: list[str], initrd: Path
) -> None:
    check_flavour(linux.flavour(package, suite), word, [*pyvmm_cmd, "run"], initrd)


@pytest.mark.matrix
@pytest.mark.parametrize("host", ["6.12", "7.2"], indirect=True)
def test_kernel_with_16_kib_pages_boots_on_newer_hosts(
    host: list[str], pyvmm_cmd: list[str], initrd: Path
) -> None:
    image = linux.flavour("linux-image-arm64-16k", "trixie")

    check_flavour(image, "16k", [*pyvmm_cmd, "run", *host], initrd)


def check_flavour(image: Path, word: str, command: list[str], initrd: Path) -> None:
    """Boot a kernel to its shell, and check the flavour in its name."""
    options = ["-c", "2", "-m", "256", "-i", str(initrd), "-p", "quiet"]

    with Session([*command, *options, str(image)]) as guest:
        guest.wait_for(PROMPT)

        assert word in guest.shell("uname -r").split("-")
        guest.type(b"poweroff -f\n")
        assert guest.end() == 0


@pytest.mark.matrix
def test_vmlinux_around_debians_image_boots(
    pyvmm_cmd: list[str], cross_gcc: Path, initrd: Path, tmp_path: Path
) -> None:
    vmlinux = linked.link_vmlinux(cross_gcc, linux.image("6.1"), tmp_path / "vmlinux")
    options = ["-v", "-c", "1", "-m", "256", "-i", str(initrd), "-p", "quiet"]

    with Session([*pyvmm_cmd, "run", *options, str(vmlinux)]) as guest:
        guest.wait_for(PROMPT)

        assert guest.shell("uname -r").startswith("6.1.")
        guest.type(b"poweroff -f\n")
        assert guest.end() == 0


@pytest.mark.matrix
def test_uki_of_debians_ukify_boots(pyvmm_cmd: list[str], initrd: Path, tmp_path: Path) -> None:
    uki = linux.ukify(tmp_path / "uki.efi", linux.image("6.1"), initrd, "quiet fromuki=1")

    with Session([*pyvmm_cmd, "run", "-v", "-c", "1", "-m", "512", str(uki)]) as guest:
        guest.wait_for(PROMPT)

        assert "quiet fromuki=1" in guest.shell("cat /proc/cmdline")
        guest.type(b"poweroff -f\n")
        assert guest.end() == 0
