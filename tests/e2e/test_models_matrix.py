"""Each ready-made CPU on each kernel: its guests, what `doctor` and `sve` say, what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from pyvmm.host import HostSettings, is_local
from pyvmm.host.models import MODELS
from tests.e2e import vls
from tests.e2e.conftest import FIRST_S, Pyvmm, message

pytestmark = [pytest.mark.e2e, pytest.mark.matrix, pytest.mark.timeout(1800)]

KERNELS = ("6.1", "6.12", "7.2")


class Cpu(NamedTuple):
    """The vector lengths of a model, and whether its guests' kernels may be 32-bit ones."""

    lengths: tuple[int, ...]
    aarch32: bool = False


CPUS = {
    "a64fx": Cpu((128, 256, 512)),
    "neoverse-n1": Cpu(()),
    "neoverse-n2": Cpu((128,)),
    "neoverse-v1": Cpu((128, 256)),
    "max": Cpu(vls.EVERY, aarch32=True),
    "hole-384": Cpu(tuple(n for n in vls.EVERY if n != 384), aarch32=True),
    "no-sve": Cpu((), aarch32=True),
    "sme-only": Cpu((), aarch32=True),
}
# Hosts for features other than SVE: tests/e2e/test_models.py
OTHERS = {"gicv2", "mte", "nested"}


class Host(NamedTuple):
    """A running host, its model, and the options that choose it."""

    model: str
    options: tuple[str, ...]

    @property
    def cpu(self) -> Cpu:
        return CPUS[self.model]


def test_every_ready_made_host_has_its_cases() -> None:
    assert {*CPUS} | OTHERS == {*MODELS}


@pytest.fixture(scope="module", params=[(m, k) for m in CPUS for k in KERNELS], ids="-".join)
def host(request: pytest.FixtureRequest, pyvmm: Pyvmm) -> Iterator[Host]:
    """Start the host for its tests, and remove it after them."""
    if is_local(HostSettings()):
        pytest.skip("commands run on this machine's own KVM")
    model, kernel = request.param
    options = ("--host-model", model, "--host-kernel", kernel)
    done = pyvmm("host", "start", *options, timeout=FIRST_S)
    assert done.returncode == 0, done.stderr
    yield Host(model, options)
    pyvmm("host", "rm", *options)


def test_bare_metal_guest_greets_from_el1(host: Host, pyvmm: Pyvmm) -> None:
    done = pyvmm("run", *host.options, "hello")

    assert done.stdout.startswith("Hello from EL1 on vCPU 0")
    assert (done.stderr, done.returncode) == ("", 0)


def test_guest_has_the_models_vector_lengths(host: Host, pyvmm: Pyvmm) -> None:
    done = pyvmm("run", *host.options, "sve-vls")

    lengths = vls.show(host.cpu.lengths, " ")
    said = f"SVE vector lengths: {lengths}" if lengths else "SVE: not implemented"
    assert done.stdout.splitlines()[-1] == said
    assert (done.stderr, done.returncode) == ("", 0)


def test_doctor_says_that_vms_can_run_and_what_their_cpus_have(host: Host, pyvmm: Pyvmm) -> None:
    done = pyvmm("doctor", *host.options, "--json")

    document = json.loads(done.stdout)
    kvm = document["kvm"]
    assert (done.returncode, document["vms_can_run"]) == (0, True)
    assert kvm["sve_vector_lengths"] == [*host.cpu.lengths]
    assert (kvm["gicv2"], kvm["gicv3"], kvm["gicv3_its"]) == (False, True, True)
    assert ("AARCH32" in kvm["cpu_features"].split(",")) == host.cpu.aarch32
    lacks = {lack["name"]: lack["fatal"] for lack in document["lacks"]}
    assert ("sve_vector_lengths" in lacks) != bool(host.cpu.lengths)
    assert True not in lacks.values()


def test_sve_list_shows_the_lengths_of_kvm_of_programs_and_of_the_cpu(
    host: Host, pyvmm: Pyvmm
) -> None:
    done = pyvmm("sve", "list", *host.options, "--json")

    document = json.loads(done.stdout)
    lengths = [*host.cpu.lengths]
    assert done.returncode == 0
    assert document["agrees"] is True, document["differences"]
    assert document["sve"]["kvm"] == document["sve"]["prctl"] == document["sve"]["rdvl"] == lengths
    assert document["sets"] == [lengths[: n + 1] for n in range(len(lengths))]


def test_options_that_the_host_lacks_are_refused_with_the_reason(host: Host, pyvmm: Pyvmm) -> None:
    refused = {
        ("--nested",): "gives guests no EL2: that needs Linux v6.16",
        ("--irqchip", "gicv2"): "this host's KVM has no gicv2",
        ("-c", "513"): r"at most \d+ vCPUs",
        ("-m", "16P"): r"needs 55 guest physical address bits, and this host has \d\d",
        ("--vcpu-affinity", "0,63"): "this host has no CPU 63",
    }
    if not host.cpu.lengths:
        refused |= {(option,): f"{option}: this host has no SVE"
                    for option in ("--sve", "--sve-vls=128", "--sve-max-vl=256")}  # fmt: skip
    elif host.cpu.lengths != vls.EVERY:
        missing = min({*vls.EVERY} - {*host.cpu.lengths})
        refused[f"--sve-vls={missing}",] = f"the host does not have {missing}"
    if not host.cpu.aarch32:
        refused["--aarch32",] = "no 32-bit state in EL1"

    for options, words in refused.items():
        done = pyvmm("run", *host.options, *options, "hello")

        assert re.search(words, message(done)), (options, done.stderr)
        assert "hint: " in done.stderr
        assert done.returncode == 3
