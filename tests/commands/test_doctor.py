"""`pyvmm doctor`: facts, lacks with their remedies, and the verdict."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from pyvmm import cli, host
from pyvmm.commands import doctor
from pyvmm.commands._outer import outer_facts
from pyvmm.errors import HostError
from pyvmm.kvm.caps import Cap
from pyvmm.machine.facts import Fact, gicv3_fact, huge_pages, machine_facts
from pyvmm.sandbox import landlock, seccomp

Capture = pytest.CaptureFixture[str]

FINE = Fact("kvm", "SVE vector lengths", [128, 256])
LACKING = Fact("kvm", "GICv2", False, "no GICv2 here", "get one")
FATAL = Fact("kvm", "device", None, "no /dev/kvm", "modprobe something", fatal=True)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("SVE vector lengths", "sve_vector_lengths"),
        ("qemu-system-aarch64", "qemu_system_aarch64"),
        ("ARM_SVE", "ARM_SVE"),
    ],
)
def test_fact_has_a_key_for_json(name: str, key: str) -> None:
    assert Fact("topic", name, 1).key == key


def test_document_has_values_by_topic_and_lacks_with_their_remedies() -> None:
    document = doctor.document([FINE, LACKING])

    assert document == {
        "schema": 1,
        "vms_can_run": True,
        "kvm": {"sve_vector_lengths": [128, 256], "gicv2": False},
        "lacks": [
            {
                "topic": "kvm",
                "name": "gicv2",
                "what": "no GICv2 here",
                "remedy": "get one",
                "fatal": False,
            }
        ],
    }


def test_fatal_lack_means_that_no_vm_can_run() -> None:
    assert doctor.document([FINE, FATAL])["vms_can_run"] is False


def test_facts_are_passed_into_an_emulated_host(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [FINE, LACKING, FATAL]
    monkeypatch.setenv(doctor.OUTER_VARIABLE, json.dumps([fact.as_json() for fact in facts]))

    assert doctor._handed_in() == facts


def test_table_shows_values_and_remedies(capsys: Capture) -> None:
    doctor.show([FINE, LACKING, FATAL, Fact("capabilities", "ARM_SVE", 1)])
    shown = capsys.readouterr().out

    for words in ("128,256", "no GICv2 here", "get one", "modprobe something", "ARM_SVE"):
        assert words in shown
    assert "VMs cannot run here" in shown
    assert "\x1b" not in shown  # no colours without a terminal


@pytest.mark.parametrize(
    ("v3", "v2", "fatal", "words"),
    [
        (True, False, False, ""),
        (True, True, False, ""),
        (False, True, False, "a VM has at most 8 vCPUs, and no ITS"),
        (False, False, True, "neither a GICv3 nor a GICv2"),
    ],
)
def test_machine_without_any_gic_cannot_run_vms(
    v3: bool, v2: bool, fatal: bool, words: str
) -> None:
    fact = gicv3_fact(v3, v2=v2)

    assert (fact.value, fact.fatal) == (v3, fatal)
    assert words in fact.lack
    assert bool(fact.remedy) == bool(fact.lack)


@pytest.mark.parametrize(
    ("setting", "value", "lack"),
    [
        ("[always] madvise never", "always", False),
        ("always [madvise] never", "madvise", False),
        ("always madvise [never]", "never", True),
        (None, "none", True),
    ],
)
def test_disabled_huge_pages_are_a_lack(
    tmp_path: Path, setting: str | None, value: str, lack: bool
) -> None:
    file = tmp_path / "enabled"
    if setting is not None:
        file.write_text(setting + "\n")

    fact = huge_pages(file)

    assert (fact.value, bool(fact.lack), fact.fatal) == (value, lack, False)
    assert bool(fact.remedy) == (value == "never")


def test_machine_facts_are_the_kernels_own() -> None:
    facts = {fact.key: fact.value for fact in machine_facts()}

    assert facts["architecture"] == platform.machine()
    assert facts["kernel"] == f"Linux {platform.release()}"
    assert facts["page_size"] in (4096, 16384, 65536)


def test_missing_confinement_is_a_lack_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> int:
        raise landlock.Absent("the kernel has no Landlock")

    monkeypatch.setattr(landlock, "abi", none)
    monkeypatch.setattr(seccomp, "NUMBERS", {})

    facts = {fact.name: fact for fact in doctor.confinement_facts()}

    assert facts["Landlock ABI"].value is None
    assert facts["Landlock ABI"].lack == "the kernel has no Landlock: VMs run less confined"
    assert facts["seccomp"].value is False
    assert facts["seccomp"].lack == "the kernel has no seccomp filters: VMs run less confined"
    assert all(fact.remedy and not fact.fatal for fact in facts.values())


def test_outer_facts_name_what_is_missing_and_where_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")

    lacks = {fact.name: fact.remedy for fact in outer_facts() if fact.lack}

    assert lacks["apt-get"] == "apt-get install apt"
    assert lacks["mkfs.erofs"] == "apt-get install erofs-utils"


def test_machine_of_another_architecture_is_a_fatal_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    monkeypatch.setattr("pyvmm.host.machine", lambda: "riscv64")

    (fact,) = doctor.local_facts()

    assert fact.fatal
    assert "riscv64 runs no arm64 guests" in fact.lack


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_machine_without_kvm_gets_a_diagnosis_and_code_3(
    form: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    monkeypatch.setattr("pyvmm.host.machine", lambda: "riscv64")
    monkeypatch.delenv(host.INSIDE_VARIABLE, raising=False)

    code = cli.main(["doctor", "--host", "local", *form])
    said = capsys.readouterr()

    assert code == 3
    assert "riscv64 runs no arm64 guests" in said.out
    assert said.err == ""


def test_emulated_host_that_cannot_be_made_is_a_lack(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def refuse(*_: object) -> int:
        raise HostError("no mirror", hint="configure apt")

    monkeypatch.setattr(host, "is_local", lambda where: False)
    monkeypatch.setattr(host, "forward", refuse)
    monkeypatch.delenv(host.INSIDE_VARIABLE, raising=False)
    monkeypatch.setenv(doctor.OUTER_VARIABLE, "[]")  # restored after the test

    code = cli.main(["doctor", "--host", "emulated", "--json"])
    document = json.loads(capsys.readouterr().out)

    assert code == 3
    assert document["lacks"][-1] == {
        "topic": "kvm",
        "name": "emulated_host",
        "what": "no mirror",
        "remedy": "configure apt",
        "fatal": True,
    }
    assert "outside" in document


@pytest.mark.kvm
def test_machine_with_kvm_reports_every_topic(capsys: Capture) -> None:
    code = cli.main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)

    assert code == 0
    assert document["vms_can_run"] is True
    assert document["confinement"]["seccomp"] is True
    assert document["confinement"].keys() == {"landlock_abi", "seccomp"}
    assert document["kvm"]["api_version"] == 12
    assert document["kvm"]["gicv3"] or document["kvm"]["gicv2"]
    assert document["kvm"]["guest_physical_address_bits"] >= 32
    kinds = document["kvm"]["virtio_devices"].split(", ")
    assert kinds == ["balloon", "console", "disk", "hotplug", "pmem", "rng", "share", "vsock"]
    assert document["capabilities"].keys() == Cap.__members__.keys()
    has_sve = document["capabilities"]["ARM_SVE"] > 0
    assert bool(document["kvm"]["sve_vector_lengths"]) == has_sve


def test_registers_are_in_json_by_name_and_not_in_the_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    facts = [Fact("kvm", "device", "/dev/kvm"), Fact("registers", "APIAKeyLo_EL1", "0x0")]

    doctor.show(facts)

    assert doctor.document(facts)["registers"] == {"APIAKeyLo_EL1": "0x0"}
    assert "APIAKeyLo" not in capsys.readouterr().out


def test_arm64_machine_whose_kvm_cannot_be_opened_gets_the_remedy_and_no_emulated_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    device = tmp_path / "kvm"  # a directory: no process can open it for writing
    device.mkdir()
    monkeypatch.setattr(host, "DEVICE", device)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr("pyvmm.host.machine", lambda: "aarch64")
    monkeypatch.delenv(host.INSIDE_VARIABLE, raising=False)
    monkeypatch.setattr(host, "forward", lambda *_: pytest.fail("an emulated host was started"))

    code = cli.main(["doctor", "--json"])
    (lack,) = json.loads(capsys.readouterr().out)["lacks"]

    assert code == 3
    assert lack["fatal"]
    assert lack["what"] == f"{device} cannot be opened: Is a directory [EISDIR]"
    assert "--host emulated" in lack["remedy"]


def test_arm64_machine_without_kvm_reports_the_reason_beside_its_emulated_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "DEVICE", tmp_path / "kvm")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr("pyvmm.host.machine", lambda: "aarch64")

    (fact,) = [fact for fact in outer_facts() if fact.name == "KVM"]

    assert "did not start at EL2" in fact.lack
    assert not fact.fatal
