"""Checks of a Config against a host's limits, without a host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from pyvmm import layout
from pyvmm.config import Config, CpuRequest, DeviceConfig, Rng, SveRequest
from pyvmm.errors import HostError
from pyvmm.layout import GIB, MIB
from pyvmm.machine.plan import (
    Feature,
    HostLimits,
    check,
    choose,
    most_memory,
    plan,
    room_for_vcpus,
)
from tests.arm64.lengths import FULL_512, POWERS_512, hosts, kernel_accepts, sets

HOST = HostLimits(max_vcpus=512, ipa_bits=40, vls=frozenset({128, 256, 512}))


def config(**options: Any) -> Config:
    return Config(image=Path("guest"), **options)


def test_plan_keeps_requested_values() -> None:
    asked = config(vcpus=3, memory=512 * MIB, sve=SveRequest(vls=frozenset({128})))

    made = plan(asked, HOST)

    assert (made.vcpus, made.memory, made.vls) == (3, 512 * MIB, frozenset({128}))


def test_plan_fills_in_every_default() -> None:
    made = plan(config(), HOST)

    assert made.vcpus >= 1
    assert made.memory >= 256 * MIB or made.memory % MIB == 0
    assert made.vls == {128, 256, 512}


class Wide(DeviceConfig, kw_only=True):
    """A device that needs guest physical addresses above RAM."""

    size: int

    def __str__(self) -> str:
        return f"--wide {self.size}"

    def window_size(self) -> int:
        return self.size


def test_devices_get_addresses_above_ram_that_do_not_overlap() -> None:
    devices = (Rng(), Wide(size=3 * GIB), Rng(), Wide(size=2 * MIB))

    made = plan(config(memory=256 * MIB, devices=devices), HOST)

    bases = [window.base for window in made.windows if window.size]
    assert bases == [3 * GIB, 7 * GIB]  # with a gap before each
    assert [window.size for window in made.windows] == [0, 3 * GIB, 0, 2 * MIB]
    assert made.ipa_bits == 33


def test_plan_refuses_a_device_beyond_the_hosts_address_bits() -> None:
    with pytest.raises(HostError) as caught:
        plan(config(memory=256 * MIB, devices=(Wide(size=1 << 40),)), HOST)

    assert caught.value.message == (
        "--wide 1099511627776: 1 TiB at 0xc0000000, above RAM, need 41 guest physical address "
        "bits, and this host has 40"
    )


def test_plan_uses_no_more_address_bits_than_the_ram_needs() -> None:
    assert plan(config(memory=2 * GIB), HOST).ipa_bits == 32
    assert plan(config(memory=2 * GIB + MIB), HOST).ipa_bits == 33


def test_default_vcpus_stay_within_the_host() -> None:
    host = HostLimits(max_vcpus=1, ipa_bits=40, vls=frozenset())

    assert plan(config(), host).vcpus == 1


def test_too_many_vcpus_are_refused_with_the_limit() -> None:
    with pytest.raises(HostError) as caught:
        plan(config(vcpus=100_000), HOST)

    assert "`vcpus`=100000" in caught.value.message
    assert "at most 512" in caught.value.message
    assert caught.value.exit_code == 3


def test_redistributors_limit_the_vcpus_where_the_host_does_not() -> None:
    host = HostLimits(max_vcpus=1_000_000, ipa_bits=40, vls=frozenset())

    with pytest.raises(HostError, match=f"at most {room_for_vcpus()} vCPUs"):
        plan(config(vcpus=1_000_000), host)


def test_redistributors_of_the_most_vcpus_do_not_overlap_devices() -> None:
    vcpus = room_for_vcpus()

    assert layout.its(vcpus).base >= layout.virtio(layout.VIRTIO_COUNT - 1).end
    assert layout.its(vcpus + 1).base < layout.virtio(layout.VIRTIO_COUNT - 1).end


def test_too_much_memory_is_refused_with_address_bits_and_the_limit() -> None:
    with pytest.raises(HostError) as caught:
        plan(config(memory=1 << 40), HOST)

    assert "1 TiB of RAM needs 41 guest physical address bits" in caught.value.message
    assert "this host has 40" in caught.value.message
    assert caught.value.hint is not None
    assert "`memory`=1022G" in caught.value.hint


def test_largest_memory_is_accepted() -> None:
    most = most_memory(HOST.ipa_bits)

    assert plan(config(memory=most), HOST).ipa_bits == 40
    with pytest.raises(HostError):
        plan(config(memory=most + 4096), HOST)


@pytest.mark.parametrize(
    ("field", "lack", "elsewhere"),
    [
        ("pmu", "no performance monitor: its kernel drives no PMU", "`host`=emulated"),
        ("nested", "no EL2: that needs Linux v6.16", "`host.model`=nested"),
        ("aarch32", "no 32-bit state in EL1: its CPUs run guest kernels", "`host.model`=max"),
    ],
)
def test_lacking_feature_is_refused_with_the_reason_and_a_host_that_has_it(
    field: str, lack: str, elsewhere: str
) -> None:
    request: Any = {field: True}

    with pytest.raises(HostError, match=rf"`cpu\.{field}`: .* gives guests {lack}") as caught:
        plan(config(cpu=CpuRequest(**request)), HOST)

    assert caught.value.hint == f"an emulated host has it: {elsewhere}"


def test_illegal_set_is_refused_with_the_nearest_sets() -> None:
    with pytest.raises(HostError) as caught:
        plan(config(sve=SveRequest(vls=frozenset({128, 512}))), HOST)

    assert caught.value.hint is not None
    assert "`sve.vls`=128,256,512" in caught.value.hint


@pytest.mark.parametrize(
    ("asked", "host", "reason", "choices"),
    [
        (
            {128, 512},
            FULL_512,
            "256 and 384 are left out",
            "`sve.vls`=128 or `sve.vls`=128,256,384,512",
        ),
        ({256}, FULL_512, "128 is left out", "`sve.vls`=128,256"),
        (
            {128, 256, 384},
            POWERS_512,
            "the host does not have 384",
            "`sve.vls`=128,256 or `sve.vls`=128,256,512",
        ),
        ({128, 2048}, {128}, "the host does not have 2048", "`sve.vls`=128"),
    ],
)
def test_check_names_the_reason_and_the_nearest_sets(
    asked: set[int], host: set[int], reason: str, choices: str
) -> None:
    with pytest.raises(HostError) as caught:
        check(frozenset(asked), frozenset(host))

    assert reason in caught.value.message
    assert caught.value.hint is not None
    assert caught.value.hint.endswith(f"can give {choices}")
    assert caught.value.exit_code == 3


@given(asked=sets.filter(bool), host=hosts)
def test_check_refuses_exactly_what_the_kernel_refuses(
    asked: frozenset[int], host: frozenset[int]
) -> None:
    try:
        check(asked, host)
        accepted = True
    except HostError:
        accepted = False

    assert accepted == kernel_accepts(asked, host)


@pytest.mark.parametrize(
    ("request_", "chosen"),
    [
        (SveRequest(), FULL_512),
        (SveRequest(required=True), FULL_512),
        (SveRequest(vls=frozenset({128, 256})), {128, 256}),
        (SveRequest(required=True, vls=frozenset({128})), {128}),
        (SveRequest(max_vl=384), {128, 256, 384}),
        (SveRequest(max_vl=2048), FULL_512),
        (SveRequest(off=True), set()),
    ],
)
def test_choose_returns_the_requested_lengths(request_: SveRequest, chosen: set[int]) -> None:
    assert choose(request_, FULL_512) == chosen


def test_choose_accepts_max_vl_that_the_host_lacks() -> None:
    assert choose(SveRequest(max_vl=384), POWERS_512) == {128, 256}


def test_choose_returns_no_sve_by_default_where_the_host_has_none() -> None:
    assert choose(SveRequest(), frozenset()) == frozenset()


@pytest.mark.parametrize(
    ("request_", "option"),
    [
        (SveRequest(required=True), "`sve.required`"),
        (SveRequest(vls=frozenset({128})), "`sve.vls`=128"),
        (SveRequest(max_vl=128), "`sve.max_vl`=128"),
    ],
)
def test_choose_refuses_a_request_for_sve_where_the_host_has_none(
    request_: SveRequest, option: str
) -> None:
    with pytest.raises(HostError) as caught:
        choose(request_, frozenset())

    assert caught.value.message == f"{option}: this host has no SVE"


@pytest.mark.parametrize(
    ("asked", "has", "words"),
    [
        (CpuRequest(nested=True), set(), "`cpu.nested`: this host's KVM gives guests no EL2: that"),
        (
            CpuRequest(nested=True, e2h0=True),
            {Feature.EL2},
            "`cpu.e2h0`: this host's KVM gives guests no EL2 without VHE: that needs a CPU with",
        ),
        (CpuRequest(aarch32=True), {Feature.EL2}, "`cpu.aarch32`: this host's KVM gives guests no"),
        (CpuRequest(pmu=True), {Feature.MTE}, "`cpu.pmu`: this host's KVM gives guests no"),
    ],
    ids=["nested", "e2h0", "aarch32", "pmu"],
)
def test_feature_that_the_host_lacks_is_refused_with_the_reason(
    asked: CpuRequest, has: set[Feature], words: str
) -> None:
    with pytest.raises(HostError) as caught:
        plan(config(cpu=asked), HOST.replace(features=frozenset(has)))

    assert caught.value.message.startswith(words)
