"""Config: refusals on every host, and lkvm's defaults."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pyvmm.config import (
    Balloon,
    Config,
    CpuRequest,
    Disk,
    Hotplug,
    Pmem,
    Rng,
    SveRequest,
    default_memory,
    default_vcpus,
)
from pyvmm.errors import UsageError
from pyvmm.layout import MIB

IMAGE = Path("guest")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vcpus": 0}, "`vcpus`=0"),
        ({"vcpus": -1}, "`vcpus`=-1"),
        ({"memory": 0}, "`memory`=0"),
        ({"memory": 4095}, "4095 bytes is not a multiple of 4 KiB"),
        ({"timeout_s": 0.0}, "`timeout_s`=0"),
        ({"timeout_s": -1.0}, "`timeout_s`=-1"),
        ({"timeout_s": float("nan")}, "`timeout_s`=nan"),
        ({"timeout_s": float("inf")}, "`timeout_s`=inf"),
        ({"params": "a\0b"}, "NUL"),
        ({"params": "a\udcff"}, "UTF-8"),
        ({"image": Path("a\0b")}, r"`image`='a\x00b': a path cannot hold a NUL"),
        ({"initrd": Path("a\ud800b")}, r"`initrd`='a\ud800b': no path has a lone surrogate"),
        ({"hugetlbfs": Path("a\0b")}, r"`hugetlbfs`='a\x00b': a path cannot hold a NUL"),
        ({"vcpu_affinity": frozenset({-1})}, "`vcpu_affinity`=-1: CPUs have numbers from 0"),
        ({"vcpu_affinity": frozenset({0, 1 << 31})}, "`vcpu_affinity`=2147483648"),
        ({"vcpu_affinity": frozenset({1 << 70})}, "`vcpu_affinity`=1180591620717411303424"),
        ({"ram_base": 0x4000_0000}, "RAM starts at 0x80000000 or higher"),
        ({"ram_base": 0x8010_0000}, "at a multiple of 2 MiB"),
        ({"console": "vga"}, "`console`=vga: not one of serial, virtio, hv"),
        ({"irqchip": "apic"}, "`irqchip`=apic: not one of gicv3, gicv3-its, gicv2"),
        ({"kaslr_seed": 1 << 64}, "`kaslr_seed`=0x10000000000000000: needs a number of 64 bits"),
        ({"devices": (Rng(),) * 65}, "65 devices: there is room for 64"),
        ({"devices": (Rng(),) * 64, "console": "virtio"}, "64 devices: there is room for 63"),
        ({"devices": (Balloon(), Rng(), Balloon())}, "`devices.balloon`: there can be only one"),
        (
            {"devices": (Hotplug(size=4 * MIB), Hotplug(size=2 * MIB))},
            "`devices.hotplug`=4 MiB: there can be only one",
        ),
        (
            {"devices": (Hotplug(size=4 * MIB),), "virtio_transport": "mmio-legacy"},
            "`devices.hotplug`=4 MiB: the legacy transport has no such device",
        ),
        (
            {"devices": (Balloon(),), "hugetlbfs": Path("/huge")},
            "`devices.balloon` and `hugetlbfs`: the guest cannot return pages of a hugetlbfs",
        ),
        (
            {"devices": (Hotplug(size=4 * MIB),), "hugetlbfs": Path("/huge")},
            "`devices.hotplug`=4 MiB and `hugetlbfs`",
        ),
        ({"timer_hz": 0}, "`timer_hz`=0: needs a frequency"),
        (
            {"cpu": CpuRequest(aarch32=True), "sve": SveRequest(max_vl=256)},
            "`cpu.aarch32` and `sve.max_vl`=256 contradict",
        ),
    ],
)
def test_config_refuses_a_machine_that_no_host_can_make(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        Config(**{"image": IMAGE, **options})

    assert words in caught.value.message


@pytest.mark.parametrize(
    ("request_", "words"),
    [({"e2h0": True}, "give `cpu.nested` too"), ({"aarch32": True, "nested": True}, "contradict")],
)
def test_cpu_request_refuses_contradictions(request_: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        CpuRequest(**request_)


def test_name_defaults_to_guest_and_process_id() -> None:
    assert Config(image=IMAGE).name == f"guest-{os.getpid()}"


def test_default_vcpus_are_the_online_cpus_within_the_limit() -> None:
    online = os.sysconf("SC_NPROCESSORS_ONLN")

    assert default_vcpus(512) == min(online, 512)
    assert default_vcpus(1) == 1


def test_default_memory_grows_with_the_vcpus() -> None:
    assert default_memory(1) == 256 * MIB


def test_default_memory_stays_within_four_fifths_of_the_host() -> None:
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    size = default_memory(1_000_000)

    assert host * 3 // 4 < size <= host * 4 // 5
    assert size % MIB == 0


@pytest.mark.parametrize("kind", [Disk, Pmem])
@pytest.mark.parametrize("path", ["a\0b", "a\ud800b"])
def test_device_refuses_a_path_that_no_file_can_have(kind: type[Disk | Pmem], path: str) -> None:
    with pytest.raises(UsageError, match=f"`devices.{kind.__name__.lower()}`="):
        kind(path=Path(path))


def test_device_accepts_a_path_of_bytes_that_are_not_text() -> None:
    assert Disk(path=Path(os.fsdecode(b"/a\xff"))).files() == (Path("/a\udcff"),)


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "a/b", "../x", "a\nb", "a b", "a*", "a\0b"])
def test_config_refuses_a_name_that_no_file_can_have(name: str) -> None:
    with pytest.raises(UsageError, match="not a name for a VM"):
        Config(image=IMAGE, name=name)


@pytest.mark.parametrize("name", ["a", "guest-1", "vm_2.old", "größe", "a:b@c+d"])
def test_config_accepts_a_name_of_letters_and_digits(name: str) -> None:
    assert Config(image=IMAGE, name=name).name == name


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"off": True, "required": True}, ("`sve.off`", "`sve.required` ")),
        ({"off": True, "vls": frozenset({128, 256})}, ("`sve.off`", "`sve.vls`=128,256")),
        ({"off": True, "max_vl": 256}, ("`sve.off`", "`sve.max_vl`=256")),
        ({"vls": frozenset({128}), "max_vl": 256}, ("`sve.vls`", "`sve.max_vl`")),
        ({"vls": frozenset()}, ("`sve.vls`",)),
    ],
)
def test_sve_request_that_contradicts_itself_names_both_fields(
    options: dict[str, Any], named: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as caught:
        SveRequest(**options)

    assert all(name in caught.value.message for name in named)
