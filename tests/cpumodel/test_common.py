"""The best CPU model of several hosts."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.arm64 import idrules
from pyvmm.cpumodel.common import common
from pyvmm.cpumodel.fit import Fit, fit
from pyvmm.cpumodel.host import CpuHost
from tests.cpumodel.hosts import NEW, OLD, host, without

REGISTERS = ("ID_AA64ISAR0_EL1", "ID_AA64PFR0_EL1", "ID_AA64MMFR0_EL1", "ID_AA64MMFR1_EL1")
values = st.fixed_dictionaries({name: st.integers(0, (1 << 64) - 1) for name in REGISTERS})


def test_model_has_the_lower_value_of_each_feature() -> None:
    found = common({"old": host(OLD), "new": host(NEW)})

    fields = found.model.fields
    assert fields["ID_AA64ISAR0_EL1.SHA2"] == 1  # SHA256: the old one has no SHA512
    assert fields["ID_AA64ISAR0_EL1.RNDR"] == 0
    assert fields["ID_AA64ISAR1_EL1.DPB"] == 0
    assert fields["CTR_EL0.DIC"] == 0
    assert found.is_whole


def test_model_names_the_cpu_of_the_first_host() -> None:
    found = common({"old": host(OLD), "new": host(NEW)})

    assert found.model.fields["MIDR_EL1.PartNum"] == 0x001
    assert found.model.fields["MIDR_EL1.Implementer"] == 0x46


def test_losses_name_what_each_host_gives_up() -> None:
    found = common({"old": host(OLD), "new": host(NEW)})

    lost = {loss.name: (loss.has, loss.model) for loss in found.losses["new"]}
    assert lost["ID_AA64ISAR0_EL1.SHA2"] == ("2 (SHA512)", "1 (SHA256)")
    assert "ID_AA64ISAR0_EL1.SHA2" not in {loss.name for loss in found.losses["old"]}


def test_field_that_kvm_cannot_change_is_an_obstacle() -> None:
    fixed = host(NEW, writable=without("ID_AA64ISAR0_EL1", "SHA2"))

    found = common({"old": host(OLD), "new": fixed})

    (obstacle,) = found.obstacles
    assert obstacle.name == "ID_AA64ISAR0_EL1.SHA2"
    assert "KVM of new cannot change it" in obstacle.reason
    assert "ID_AA64ISAR0_EL1.SHA2" not in found.model.fields
    assert not found.is_whole


def test_host_that_has_the_common_value_need_not_change_it() -> None:
    unable = host(OLD, writable={"MIDR_EL1": ALL_BITS})

    found = common({"old": unable, "new": host(NEW)})

    lacking = {obstacle.name for obstacle in found.obstacles}
    assert "ID_AA64ISAR0_EL1.SHA2" not in lacking
    assert found.model.fields["ID_AA64ISAR0_EL1.SHA2"] == 1


ALL_BITS = (1 << 64) - 1


@pytest.mark.parametrize(
    ("pauth", "common_one"),
    [(("QARMA5 PAuth", "QARMA5 PAuth"), True), (("QARMA5 PAuth", ""), False),
     (("QARMA5 PAuth", "QARMA3 PAuth"), False), (("", ""), False)],
)  # fmt: skip
def test_pointer_authentication_needs_the_same_algorithm(
    pauth: tuple[str, str], common_one: bool
) -> None:
    a, b = (host(OLD, pauth=kind) for kind in pauth)

    assert common({"a": a, "b": b}).model.pauth is common_one


@pytest.mark.parametrize(
    ("a", "b", "both"),
    [({128, 256, 512}, {128, 256}, {128, 256}), ({128, 256}, {128}, {128}),
     ({128, 512}, {128, 256, 512}, {128}), ({128}, set(), set())],
)  # fmt: skip
def test_model_has_the_largest_set_that_all_hosts_give(
    a: set[int], b: set[int], both: set[int]
) -> None:
    found = common({"a": host(OLD, vls=frozenset(a)), "b": host(OLD, vls=frozenset(b))})

    assert found.model.vls == frozenset(both)


def test_clocks_of_different_speed_are_an_obstacle() -> None:
    found = common({"a": host(OLD), "b": host(OLD, counter_hz=25_000_000)})

    assert [obstacle.name for obstacle in found.obstacles] == ["counter frequency"]
    assert not found.is_whole


def test_model_of_one_host_is_that_host() -> None:
    found = common({"new": host(NEW)})

    assert found.losses == {"new": ()}
    assert {part.fit for part in fit(found.model, host(NEW))} == {Fit.SAME}


@given(st.lists(values, min_size=1, max_size=4))
def test_every_host_gives_the_common_model(registers: list[dict[str, int]]) -> None:
    hosts = {str(number): host(held) for number, held in enumerate(registers)}

    model = common(hosts).model

    for one in hosts.values():
        assert [part for part in fit(model, one) if not part.is_given] == []


@given(st.lists(values, min_size=2, max_size=3))
def test_model_does_not_depend_on_the_order_of_hosts(registers: list[dict[str, int]]) -> None:
    models = []
    for order in itertools.permutations(range(len(registers))):
        hosts = {str(number): host(registers[number]) for number in order}
        models.append(common(hosts).model.fields)

    assert all(model == models[0] for model in models)


def test_fields_that_follow_features_are_not_in_a_model() -> None:
    fields = common({"new": host(NEW)}).model.fields

    assert [name for name in fields if idrules.is_by_feature(*name.split(".", 1))] == []


def test_register_that_one_host_lacks_counts_as_zero() -> None:
    less = {name: value for name, value in NEW.items() if name != "ID_AA64ISAR1_EL1"}
    lacking: CpuHost = host(less)

    found = common({"a": host(NEW), "b": lacking})

    assert found.model.fields["ID_AA64ISAR1_EL1.DPB"] == 0
    assert found.is_whole
