"""CPU models: what a guest reads from its ID registers, and hosts with different CPUs.

KVM changes ID registers since Linux 6.7, and the CPU's name since 6.15: hosts of those kernels are
in the matrix.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyvmm.arm64 import idrules, sysregs
from tests.e2e.conftest import FIRST_S, Pyvmm, message

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(FIRST_S)]
matrix = [pytest.mark.matrix, pytest.mark.timeout(3600)]
SHA2 = "ID_AA64ISAR0_EL1.SHA2"
V1 = ["--host-qemu", "11", "--host-cpu", "neoverse-v1"]
A64FX = ["--host-qemu", "11", "--host-cpu", "a64fx"]
MAX = ["--host-qemu", "11"]
FLEET = {"v1": V1, "a64fx": A64FX, "max": MAX}


def read_by_guest(pyvmm: Pyvmm, *options: str) -> dict[str, int]:
    """Run the guest that prints its ID registers; return them by Arm's names."""
    done = pyvmm("run", "id-registers", "-c", "1", *options, timeout=FIRST_S)
    assert done.returncode == 0, done.stderr
    generic = {}
    for name, encoding in sysregs.ENCODINGS.items():
        op0, op1 = encoding >> 14 & 3, encoding >> 11 & 7
        crn, crm, op2 = encoding >> 7 & 15, encoding >> 3 & 15, encoding & 7
        generic[f"S{op0}_{op1}_C{crn}_C{crm}_{op2}"] = name
    lines = (line.split("=") for line in done.stdout.splitlines())
    return {generic.get(name, name): int(value, 16) for name, value in lines}


def field_of(registers: dict[str, int], name: str) -> int:
    found = idrules.find(name)
    assert found is not None
    return int(found.get(registers[name.partition(".")[0]]))


@pytest.mark.usefixtures("emulated")
def test_kernel_that_changes_no_id_register_refuses_the_field(pyvmm: Pyvmm) -> None:
    done = pyvmm("run", "hello", "--cpu-id", f"{SHA2}=0")

    assert done.returncode == 3
    assert f"--cpu-id: {SHA2}=0 (NI): it is 2 (SHA512) on this host, and its KVM" in message(done)
    assert done.stdout == ""


@pytest.mark.usefixtures("emulated")
def test_value_that_the_host_has_needs_no_change(pyvmm: Pyvmm) -> None:
    registers = read_by_guest(pyvmm, "--cpu-id", f"{SHA2}=SHA512")

    assert field_of(registers, SHA2) == 2


@pytest.mark.usefixtures("emulated")
def test_guest_without_pointer_authentication_reads_none(pyvmm: Pyvmm) -> None:
    has, lacks = read_by_guest(pyvmm), read_by_guest(pyvmm, "--no-pauth")

    pauth = [f"ID_AA64ISAR1_EL1.{field}" for field in ("APA", "API")]
    assert any(field_of(has, name) for name in pauth)
    assert [field_of(lacks, name) for name in pauth] == [0, 0]


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cpu", "none.json"], "none.json: cannot be read: No such file or directory"),
        (["--cpu", "Makefile"], "Makefile: not a CPU model"),
        (["--cpu-id", "ID_AA64ISAR0_EL1.NOPE=1"], "has no field NOPE"),
        (["--cpu-id", f"{SHA2}=0", "--aarch32"], "--aarch32"),
    ],
)
def test_bad_cpu_is_refused(words: list[str], said: str, pyvmm: Pyvmm) -> None:
    done = pyvmm("run", "hello", *words)

    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize("kernel", [pytest.param(k, marks=matrix) for k in ("6.12", "7.2")])
def test_guest_reads_the_cpu_it_was_given(kernel: str, pyvmm: Pyvmm, tmp_path: Path) -> None:
    host = ["--host-kernel", kernel]
    listed = json.loads(pyvmm("cpu", "list", "--json", *host, timeout=FIRST_S).stdout)["fields"]
    model = {
        field["name"]: 0
        for field in listed
        if field["writable"] and field["rule"] == "LOWER" and field["value"]
        and field["name"].startswith(("ID_AA64ISAR", "ID_AA64MMFR1", "ID_AA64MMFR2"))
        and not field["by_feature"]
    }  # fmt: skip
    file = tmp_path / "least.json"
    file.write_text(json.dumps({"format": "pyvmm CPU model", "schema": 1, "fields": model}))

    registers = read_by_guest(pyvmm, "--cpu", str(file), *host)

    assert len(model) > 20
    assert {name: field_of(registers, name) for name in model} == model


@pytest.mark.parametrize("kernel", [pytest.param("7.2", marks=matrix)])
def test_guest_reads_the_name_it_was_given(kernel: str, pyvmm: Pyvmm) -> None:
    host = ["--host-kernel", kernel]
    registers = read_by_guest(pyvmm, "--cpu-id", "MIDR_EL1.PartNum=0xd40", *host)

    assert field_of(registers, "MIDR_EL1.PartNum") == 0xD40


@pytest.fixture(scope="module")
def fleet(pyvmm: Pyvmm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return doctor's JSON of hosts with three CPUs."""
    where = tmp_path_factory.mktemp("fleet")
    files = {}
    for name, options in FLEET.items():
        done = pyvmm("doctor", "--json", "--host-kernel", "7.2", *options, timeout=FIRST_S)
        assert done.returncode == 0, done.stderr
        files[name] = where / f"{name}.json"
        files[name].write_text(done.stdout)
    return files


@pytest.mark.parametrize("pair", [
    pytest.param(("v1", "a64fx"), marks=matrix), pytest.param(("a64fx", "max"), marks=matrix),
    pytest.param(("max", "v1"), marks=matrix),
])  # fmt: skip
def test_snapshot_of_a_common_cpu_restores_on_the_other_host(
    pair: tuple[str, str], fleet: dict[str, Path], pyvmm: Pyvmm, tmp_path: Path
) -> None:
    common = pyvmm("cpu", "common", *(str(fleet[name]) for name in pair))
    assert common.returncode == 0, common.stderr
    model, snapshot = tmp_path / "fleet.json", tmp_path / "guest.snap"
    model.write_text(common.stdout)
    first, second = (["--host-kernel", "7.2", *FLEET[name]] for name in pair)

    ran = pyvmm("run", "sve-snapshot", "-c", "2", "-m", "16", "-p", "patience=60", "--cpu",
                str(model), "--timeout", "5", "--save-on-exit", str(snapshot), *first,
                timeout=FIRST_S)  # fmt: skip
    assert ran.returncode == 124, ran.stderr
    checked = pyvmm("snapshot", "check", str(snapshot), *second, timeout=FIRST_S)
    predicted = pyvmm("snapshot", "check", str(snapshot), "--on", str(fleet[pair[1]]))
    restored = pyvmm("restore", str(snapshot), *second, input="cssssq", timeout=FIRST_S)

    assert checked.returncode == 0, checked.stdout
    assert predicted.returncode == 0, predicted.stdout
    assert restored.returncode == 0, restored.stdout + restored.stderr
    assert "failures=0" in restored.stdout
