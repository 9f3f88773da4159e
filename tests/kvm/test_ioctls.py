from __future__ import annotations

import errno

import pytest

from pyvmm.errors import EXIT_HOST
from pyvmm.kvm import ioctls
from pyvmm.kvm.hints import HINTS, hint
from pyvmm.kvm.ioctls import Ioctl
from pyvmm.kvm.structs import words

TABLE = [item for item in vars(ioctls).values() if isinstance(item, Ioctl)]


@pytest.mark.parametrize(
    ("ioctl", "number"),
    [
        # From strace.
        (ioctls.RUN, 0xAE80),
        (ioctls.SET_USER_MEMORY_REGION, 0x4020_AE46),
        (ioctls.GET_ONE_REG, 0x4010_AEAB),
        (ioctls.ARM_PREFERRED_TARGET, 0x8020_AEAF),
        (ioctls.GET_REG_LIST, 0xC008_AEB0),
        (ioctls.ARM_VCPU_FINALIZE, 0x4004_AEC2),
    ],
)
def test_ioctl_number_is_the_kernels(ioctl: Ioctl, number: int) -> None:
    assert ioctl.number == number


def test_ioctl_numbers_are_unique() -> None:
    numbers = [item.number for item in TABLE]

    assert len(set(numbers)) == len(numbers)


def test_error_has_ioctl_arguments_errno_and_hint() -> None:
    error = ioctls.SET_USER_MEMORY_REGION.error(
        errno.EEXIST, words({"slot": 1, "guest_phys_addr": 0x8000_0000})
    )

    assert str(error) == (
        "KVM_SET_USER_MEMORY_REGION(slot=1, guest_phys_addr=0x80000000): File exists [EEXIST]"
    )
    assert error.hint == "another slot has some of these guest physical addresses"
    assert error.exit_code == EXIT_HOST


def test_error_without_a_hint_has_none() -> None:
    assert ioctls.RUN.error(errno.EPROTO, "").hint is None


@pytest.mark.parametrize("error", [errno.ENOTTY, errno.EMFILE])
def test_some_errnos_have_one_hint_for_every_ioctl(error: int) -> None:
    assert hint("KVM_CREATE_VM", error) == hint("KVM_IRQFD", error) is not None


def test_hints_name_existing_ioctls() -> None:
    assert {name for name, _ in HINTS} <= {item.name for item in TABLE} | {"open"}


def test_ioctl_without_a_structure_refuses_one() -> None:
    with pytest.raises(TypeError, match="KVM_RUN takes no structure"):
        ioctls.RUN.write(0, slot=1)
