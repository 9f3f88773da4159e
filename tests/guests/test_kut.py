"""The contract with kvm-unit-tests: its runner for kvmtool works with pyvmm.

Source: kvm-unit-tests, scripts/vmm.bash and scripts/arch-run.bash (TARGET=kvmtool).
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guests.conftest import flat_image

# The first command may have to make and boot the emulated host.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SOURCE = Path(__file__).with_name("kut.c")
NO_FILE = "_NO_FILE_4Uhere_"
DEFAULTS = ["--nodefaults", "--network", "mode=none", "--loglevel=warning"]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def flat(cross_gcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the test's flat image, which runs at 0x80080000."""
    directory = tmp_path_factory.mktemp("kut")
    elf = directory / "kut.elf"
    subprocess.run(
        [cross_gcc, "-O2", "-Wall", "-Werror", "-ffreestanding", "-fno-pie", "-no-pie", "-static",
         "-nostdlib", "-mgeneral-regs-only", "-fno-stack-protector", "-mno-outline-atomics",
         "-fno-asynchronous-unwind-tables", "-Wl,--build-id=none,-N",
         "-T", SOURCE.with_suffix(".ld"), "-o", elf, SOURCE],
        check=True,
    )  # fmt: skip
    image = directory / "kut.flat"
    image.write_bytes(flat_image(elf))
    return image


@pytest.fixture
def runner(pyvmm_cmd: list[str], tmp_path: Path) -> Run:
    """Run the runner's command line, with stdin from /dev/null."""
    environment = tmp_path / "env"
    environment.write_text("KERNEL_VERSION=6\nERRATA_FORCE=y\n")

    def run(
        image: Path | str, *options: str, cpus: int = 1, before: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        command = [*pyvmm_cmd, "run", *before, "--kernel", str(image), "--cpus", str(cpus)]
        command += [*options, *DEFAULTS, "--initrd", str(environment)]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200
        )

    return run


def test_runner_recognises_pyvmm_by_its_help(pyvmm_cmd: list[str]) -> None:
    done = subprocess.run([*pyvmm_cmd, "--help"], capture_output=True, text=True)

    assert "The most commonly used" in done.stdout


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--mem", "256", "--irqchip=gicv3"),
        ("--irqchip=gicv3-its", "--pmu"),
        ("--no-pvtime", "--disable-mte"),
    ],
    ids=" ".join,
)
def test_verdict_reaches_stdout_and_the_exit_code_is_0(
    runner: Run, flat: Path, options: tuple[str, ...]
) -> None:
    done = runner(flat, "--params", "status=3", *options)

    assert done.stdout.splitlines() == [
        "ARGS: status=3", "ENV: KERNEL_VERSION=6", "ERRATA_FORCE=y", "", "", "EXIT: STATUS=3",
    ]  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == 0


def test_test_with_several_cpus_runs_without_params(runner: Run, flat: Path) -> None:
    done = runner(flat, cpus=2)

    assert re.search(r"^ARGS: $", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^EXIT: STATUS=1$", done.stdout, re.MULTILINE)
    assert done.returncode == 0


@pytest.mark.parametrize("migrations", [1, 3])
def test_guest_is_migrated_at_each_of_its_prompts(runner: Run, flat: Path, migrations: int) -> None:
    done = runner(flat, "--params", f"migrate={migrations}", before=("--migrate-on-prompt",))

    asked = "Now migrate the VM, then press a key to continue..."
    assert done.stdout.splitlines() == [
        f"ARGS: migrate={migrations}", "ENV: KERNEL_VERSION=6", "ERRATA_FORCE=y", "",
        *(asked, "Migration complete") * migrations, "", "EXIT: STATUS=0",
    ]  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == 0


def test_guest_that_skips_its_migration_gets_its_key_too(runner: Run, flat: Path) -> None:
    done = runner(flat, "--params", "migrate=-", before=("--migrate-on-prompt",))

    assert done.stdout.splitlines()[-3:] == ["Skipped VM migration (quiet)", "", "EXIT: STATUS=0"]
    assert (done.stderr, done.returncode) == ("", 0)


def test_migration_ends_at_the_timeout(runner: Run, flat: Path) -> None:
    options = ("--migrate-on-prompt", "--timeout", "0.1")

    done = runner(flat, "--params", "migrate=9", before=options)

    assert done.returncode == 124


def test_missing_kernel_is_the_only_error_of_the_runners_check(runner: Run) -> None:
    done = runner(NO_FILE, "--irqchip=gicv3", "--pmu")

    assert f"Fatal: Unable to open kernel {NO_FILE}" in done.stdout + done.stderr
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("options", "before", "reason"),
    [
        (("--irqchip=gicv2",), (), "Failed to create virtual GIC"),
        ((), ("--nested",), "gives guests no EL2"),
    ],
    ids=["irqchip", "nested"],
)
def test_runner_skips_a_test_with_the_reason_when_the_host_lacks_a_feature(
    runner: Run, options: tuple[str, ...], before: tuple[str, ...], reason: str
) -> None:
    done = runner(NO_FILE, *options, before=before)

    # The runner skips a test without these words, and shows the last line as the reason.
    assert "Unable to open kernel" not in done.stdout + done.stderr
    assert reason in done.stderr.splitlines()[-1]
    assert done.returncode == 3
