"""KVM_GET_REG_LIST as pyvmm shows it, compared with the kernel's own get-reg-list."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
from elftools.elf.elffile import ELFFile

from pyvmm.kvm import regs
from tests import selftests

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.matrix,
    pytest.mark.timeout(900),
    pytest.mark.parametrize("host", ["6.1", "6.12", "7.2"], indirect=True, scope="module"),
]

# get-reg-list's names of its vCPUs, and their features
CONFIGS: Final = {
    "vregs": (),
    "vregs+pmu": ("PMU_V3",),
    "sve": ("SVE",),
    "sve+pmu": ("SVE", "PMU_V3"),
    "vregs+pauth_address+pauth_generic": ("PTRAUTH_ADDRESS", "PTRAUTH_GENERIC"),
}

LISTED: Final = (
    "--list",
    "--list-filtered",
)  # with CCSIDR, which get-reg-list filters out by default

# Run in the host: the registers of vCPUs with those features, in the order of the view.
OURS: Final = """
import json, sys
from pyvmm.kvm.system import System
from pyvmm.kvm.uapi import VcpuFeature
from pyvmm.machine.vcpus import MachineVcpu

def listed(features):
    with System.open() as system, system.create_vm() as vm, vm.create_vcpu(0, MachineVcpu) as vcpu:
        vcpu.init(vm.preferred_target(), [VcpuFeature[name] for name in features])
        if "SVE" in features:
            vcpu.finalize(VcpuFeature.SVE)
        return [(row.id, row.name, row.size, row.error) for row in vcpu.registers()]

print(json.dumps({name: listed(features) for name, features in json.loads(sys.argv[1]).items()}))
"""

TO_C: Final = """
#include <stddef.h>
#include <asm/kvm.h>
#include <linux/kvm.h>
const __u64 ids[] = {{ {lines} }};
"""


@pytest.fixture(scope="module")
def theirs(
    host: list[str], pyvmm_cmd: list[str], cross_gcc: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[int]]:
    """Return the lists of the host kernel's get-reg-list, by the vCPU's name there."""
    directory = tmp_path_factory.mktemp("get-reg-list")
    test = selftests.build_kvm_test(cross_gcc, host[-1], "get-reg-list", directory)
    where = [*pyvmm_cmd, "host", "exec", *host[2:], "--", str(test)]
    return {
        name: ids([*where, f"--config={name}", *LISTED], cross_gcc, directory) for name in CONFIGS
    }


@pytest.fixture(scope="module")
def ours(host: list[str], pyvmm_cmd: list[str]) -> dict[str, list[Any]]:
    """Return the lists of pyvmm's register view: ids, names, sizes and errors."""
    where = [*pyvmm_cmd, "host", "exec", *host[2:], "--"]
    script = ["python3", "-P", "-c", OURS, json.dumps(CONFIGS)]  # -P: not this directory's pyvmm
    done = subprocess.run([*where, *script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed: dict[str, list[Any]] = json.loads(done.stdout)
    return listed


def ids(command: list[str], gcc: Path, directory: Path) -> list[int]:
    """Return the ids that get-reg-list prints as C, computed with the kernel's headers."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("\t")]
    (directory / "ids.c").write_text(TO_C.format(lines="\n".join(lines)))
    subprocess.run([str(gcc), "-c", "-o", "ids.o", "ids.c"], cwd=directory, check=True)
    with (directory / "ids.o").open("rb") as file:
        section = ELFFile(file).get_section_by_name(".rodata")
        data = b"" if section is None else section.data()
    return [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]


@pytest.mark.parametrize("config", CONFIGS)
def test_register_list_equals_that_of_the_kernels_own_test(
    config: str, theirs: dict[str, list[int]], ours: dict[str, list[Any]]
) -> None:
    assert [row[0] for row in ours[config]] == theirs[config]
    print(f"\n{config}: {len(ours[config])} registers")


@pytest.mark.parametrize("config", CONFIGS)
def test_every_register_has_a_name_of_its_own_and_the_size_its_id_says(
    config: str, ours: dict[str, list[Any]]
) -> None:
    rows = ours[config]

    assert len({name for _, name, _, _ in rows}) == len(rows)
    assert [regs.name(reg_id) for reg_id, *_ in rows if regs.name(reg_id).startswith("0x")] == []
    assert all(size == 1 << (reg_id >> 52 & 0xF) for reg_id, _, size, _ in rows)
    assert [row for row in rows if row[3]] == []
