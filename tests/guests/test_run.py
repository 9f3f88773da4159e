"""The guests on a real KVM: this machine's, or the emulated host's."""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guests.conftest import flat_image

# The first command may have to make and boot the emulated host.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def run(pyvmm_cmd: list[str], built: Path) -> Run:
    """Run a guest with `pyvmm run OPTIONS` to its end."""

    def run_guest(
        name: str, *options: str, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        command = [*pyvmm_cmd, "run", *options, str(built / name)]
        return subprocess.run(command, input=stdin, capture_output=True)

    return run_guest


def test_hello_prints_one_line_and_switches_off(run: Run) -> None:
    done = run("hello", "-c", "1")

    assert done.stdout == b"Hello from EL1 on vCPU 0, MPIDR_EL1=0x80000000\n", done.stderr
    assert done.returncode == 0


def test_flat_image_runs_like_the_elf_file(
    built: Path, pyvmm_cmd: list[str], tmp_path: Path
) -> None:
    flat = tmp_path / "hello.bin"
    flat.write_bytes(flat_image(built / "hello"))

    done = subprocess.run([*pyvmm_cmd, "run", str(flat)], capture_output=True)

    assert done.stdout.startswith(b"Hello from EL1"), done.stderr
    assert done.returncode == 0


def test_exit_ends_with_the_code_of_the_command_line(run: Run) -> None:
    done = run("exit", "-p", "console=ttyS0 exit=42")

    assert (done.stdout, done.returncode) == (b"", 42), done.stderr


def test_exit_without_parameters_is_success(run: Run) -> None:
    done = run("exit")

    assert (done.stdout, done.returncode) == (b"", 0), done.stderr


@pytest.mark.parametrize(
    ("params", "syndrome"),
    [
        pytest.param("undef", r"\(EC=0x0\)", id="undefined-instruction"),
        pytest.param("read=0x40000000", r"\(EC=0x25\) .* FAR_EL1=0x40000000", id="data-abort"),
    ],
)
def test_exception_is_reported_and_fails(run: Run, params: str, syndrome: str) -> None:
    done = run("exit", "-p", params)

    report = rf"vCPU 0: unexpected exception: ESR_EL1=0x\w+ {syndrome}"
    assert re.match(report, done.stdout.decode()), (done.stdout, done.stderr)
    assert done.returncode == 1


def test_address_without_a_device_reads_as_zero(run: Run) -> None:
    done = run("exit", "-p", "read=0x03ffff00")

    assert (done.stdout, done.returncode) == (b"0x00000000\n", 0), done.stderr


def test_reset_ends_the_machine(run: Run) -> None:
    done = run("exit", "-p", "reset")

    assert (done.stdout, done.returncode) == (b"", 0), done.stderr


@pytest.mark.parametrize("params", ["spin", "spin=busy"])
def test_guest_that_never_ends_is_ended_by_the_timeout(run: Run, params: str) -> None:
    done = run("exit", "--timeout", "2", "-p", params)

    assert done.returncode == 124, done.stderr
    assert done.stdout in (b"", b"spinning\n")  # on a busy machine the guest has not printed it yet


def test_flood_arrives_whole_and_in_order(run: Run) -> None:
    size = 3_000
    lines = b"".join(b"%015d %047d\n" % (at, 0) for at in range(0, size, 64))

    done = run("exit", "-p", f"flood={size}")

    assert (done.stdout, done.returncode) == (lines[:size], 0), done.stderr


@pytest.mark.parametrize("vcpus", [1, 3])
def test_sve_vls_sees_exactly_the_requested_set(run: Run, vcpus: int) -> None:
    done = run("sve-vls", "--sve-vls=128,256", "-c", str(vcpus))

    identification, lengths = done.stdout.decode().splitlines()
    assert lengths == "SVE vector lengths: 128 256", done.stderr
    assert re.fullmatch(
        rf"ID_AA64PFR0_EL1=0x\w+ ID_AA64ZFR0_EL1=0x\w+ MIDR_EL1=0x\w+ vCPUs={vcpus}",
        identification,
    )
    assert done.returncode == 0


def test_sve_vls_without_sve_says_so(run: Run) -> None:
    done = run("sve-vls", "--no-sve", "-c", "2")

    assert done.stdout.decode().splitlines()[1:] == ["SVE: not implemented"], done.stderr
    assert b" ID_AA64ZFR0_EL1=0x0 " in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("bank", "report"),
    [
        ("z", "vCPU 1: VL 256: z31 byte 31: "),
        ("p", "vCPU 1: VL 256: p15 byte 3: "),
        ("ffr", "vCPU 1: VL 256: ffr byte 3: "),
    ],
    ids=["z", "p", "ffr"],
)
def test_sve_vls_catches_one_wrong_byte(run: Run, bank: str, report: str) -> None:
    done = run("sve-vls", "--sve-vls=128,256", "-c", "2", "-p", f"break={bank}")

    lines = done.stdout.decode().splitlines()
    assert lines[0].startswith(report), done.stderr
    assert re.fullmatch(r"expected 0x(\w\w), got 0x(?!\1)\w\w", lines[0][len(report) :])
    assert [line for line in lines if line.startswith("vCPU")] == lines[:1]
    assert done.returncode == 1


KERNELS = ("daxpy", "strlen", "matmul")


def test_sve_math_agrees_with_scalars_at_every_length(run: Run) -> None:
    done = run("sve-math", "--sve-vls=128,256,512")

    lines = [line.rpartition(": ") for line in done.stdout.decode().splitlines()]
    assert [line[0] for line in lines] == [
        f"{kernel} at {length} bits" for kernel in KERNELS for length in (128, 256, 512)
    ], done.stderr
    assert all(re.fullmatch(r"\d+\.\d{3} ticks per element", line[2]) for line in lines)
    assert done.returncode == 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_sve_math_catches_one_wrong_result(run: Run, kernel: str) -> None:
    done = run("sve-math", "--sve-vls=128", "-p", f"kernel={kernel} break={kernel}")

    report = rf"{kernel} at 128 bits: element \d+: expected (0x\w{{16}}), got (?!\1)0x\w{{16}}\n"
    assert re.fullmatch(report, done.stdout.decode()), (done.stdout, done.stderr)
    assert done.returncode == 1


def test_sve_math_refuses_an_unknown_kernel(run: Run) -> None:
    done = run("sve-math", "-p", "kernel=fft")

    assert done.stdout.startswith(b"no kernel of that name"), done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("vcpus", [1, 3])
def test_sve_zcr_finds_every_register_unchanged(run: Run, vcpus: int) -> None:
    done = run("sve-zcr", "--sve-vls=128,256,512", "-c", str(vcpus))

    said = f"200 changes of ZCR_EL1.LEN on each of {vcpus} vCPUs, 3 lengths: all registers held\n"
    assert done.stdout.decode() == said, done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("bank", ["z", "p", "ffr"])
def test_sve_zcr_catches_one_wrong_byte(run: Run, bank: str) -> None:
    done = run("sve-zcr", "--sve-vls=128,256", "-c", "2", "-p", f"break={bank}")

    first, *rest = done.stdout.decode().splitlines()
    assert re.match(rf"vCPU 1: VL 256: {bank}(31|15|) byte (31|3): expected ", first), done.stderr
    assert len(rest) == 1
    assert rest[0].endswith(": registers were lost")
    assert done.returncode == 1


@pytest.mark.parametrize("guest", ["sve-math", "sve-zcr"])
def test_guest_about_sve_without_sve_says_so(run: Run, guest: str) -> None:
    done = run(guest, "--no-sve")

    assert (done.stdout, done.returncode) == (b"SVE: not implemented\n", 0), done.stderr


@pytest.mark.parametrize("vcpus", [1, 3, 18])  # 18: the 17th is the first with another Aff1
def test_smp_reports_every_vcpu_in_order(run: Run, vcpus: int) -> None:
    done = run("smp", "-c", str(vcpus))

    mpidrs = [1 << 31 | (i >> 4) << 8 | i & 0xF for i in range(vcpus)]
    up = [f"vCPU {i}: MPIDR {mpidr:#x} up" for i, mpidr in enumerate(mpidrs)]
    again = [f"vCPU {vcpus - 1}: off and up again"] if vcpus > 1 else []
    expected = [*up, *again, f"{vcpus} vCPUs"]
    assert done.stdout.decode().splitlines() == expected, done.stderr
    assert done.returncode == 0


def test_timer_ticks_ten_times_and_never_early(run: Run) -> None:
    done = run("timer")

    report = r"10 ticks of 10 ms in (\d+)\.\d{3} ms: (\d+) counts at (\d+) Hz\n"
    match = re.fullmatch(report, done.stdout.decode())
    assert match, (done.stdout, done.stderr)
    ms, counts, frequency = (int(group) for group in match.groups())
    assert ms >= 100
    assert counts >= frequency // 10
    assert done.returncode == 0


@pytest.mark.parametrize("end", [b"quit\n", b"\x04"], ids=["quit", "EOT"])
def test_echo_returns_each_line_until_the_end(run: Run, end: bytes) -> None:
    done = run("echo", stdin=b"one\nnot quit\n" + end + b"more\n")

    *echoed, summary = done.stdout.decode().splitlines()
    assert echoed == ["one", "not quit"], done.stderr
    assert re.fullmatch(r"echo: 13 bytes, 2 lines, [1-9]\d* interrupts", summary)
    assert done.returncode == 0


def test_echo_ends_in_the_middle_of_a_line(run: Run) -> None:
    done = run("echo", stdin=b"one\ntwo\x04")

    assert done.stdout.startswith(b"one\ntwo\necho: 7 bytes, 1 lines, "), done.stderr
    assert done.returncode == 0


@pytest.mark.matrix
def test_echo_loses_no_byte_of_long_input(run: Run) -> None:
    rng = random.Random(1)
    lengths = [rng.randrange(400) for _ in range(20)]  # longer and shorter than its line buffer
    text = b"".join(bytes(rng.choices(range(0x20, 0x7F), k=n)) + b"\n" for n in lengths)

    done = run("echo", stdin=text + b"quit\n")

    assert done.stdout[: len(text)] == text, done.stderr
    assert done.stdout[len(text) :].startswith(b"echo: %d bytes, 20 lines, " % len(text))
    assert done.returncode == 0
