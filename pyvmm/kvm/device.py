"""Device attributes, and the devices of KVM_CREATE_DEVICE."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping

from pyvmm.base.closing import Closing
from pyvmm.errors import KvmError
from pyvmm.kvm import ioctls
from pyvmm.kvm.ioctls import Ioctl
from pyvmm.kvm.native import native
from pyvmm.kvm.structs import words

# Before Linux 6.4 VMs had no attributes: the ioctl itself returns EINVAL.
_ABSENT = (errno.ENXIO, errno.ENODEV, errno.ENOTTY, errno.EINVAL)


class Fd(Closing):
    """A KVM file descriptor, closed by close() or at the end of a ``with`` block."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Close the file descriptor; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class AttributeFd(Fd):
    """A VM, vCPU or device, with attributes by group and number.

    Source: Documentation/virt/kvm/devices/.
    """

    def has_attr(self, group: int, attr: int) -> bool:
        """Return whether the kernel has the attribute here (KVM_HAS_DEVICE_ATTR)."""
        try:
            ioctls.HAS_DEVICE_ATTR.write(self.fd, group=group, attr=attr)
        except KvmError as error:
            if error.errno in _ABSENT:
                return False
            raise
        return True

    def get_attr(self, group: int, attr: int, value: int = 0) -> int:
        """Read an attribute of up to 64 bits (KVM_GET_DEVICE_ATTR).

        ``value`` is input for attributes that have one, such as a redistributor region.
        """
        buffer = bytearray(value.to_bytes(8, "little"))
        self._attr(ioctls.GET_DEVICE_ATTR, group, attr, buffer)
        return int.from_bytes(buffer, "little")

    def set_attr(self, group: int, attr: int, value: int | bytes | None = None) -> None:
        """Write an attribute, or run its action (KVM_SET_DEVICE_ATTR).

        An int has up to 64 bits, bytes are a structure, None is for attributes without a value.
        """
        data = value.to_bytes(8, "little") if isinstance(value, int) else value
        buffer = None if data is None else bytearray(data)
        self._attr(ioctls.SET_DEVICE_ATTR, group, attr, buffer)

    def get_attrs(self, group: int, attrs: Iterable[int]) -> dict[int, int | KvmError]:
        """Read many attributes as get_attr() does; return an error for each refused one."""
        found: dict[int, int | KvmError] = {}
        left = list(attrs)
        while left:
            values = native().ffi.new("uint64_t[]", len(left))
            done, error = self._attrs(ioctls.GET_DEVICE_ATTR, group, left, values)
            found |= zip(left[:done], values[0:done], strict=True)
            for attr in left[done : done + 1]:
                shown = words({"group": group, "attr": attr})
                found[attr] = ioctls.GET_DEVICE_ATTR.error(error, shown)
            left = left[done + 1 :]
        return found

    def set_attrs(self, group: int, values: Mapping[int, int]) -> None:
        """Write many attributes of up to 64 bits in order, as set_attr() does.

        Raises: KvmError, for the first refused one; later ones are unchanged.
        """
        attrs = list(values)
        held = native().ffi.new("uint64_t[]", list(values.values()))
        done, error = self._attrs(ioctls.SET_DEVICE_ATTR, group, attrs, held)
        for attr in attrs[done : done + 1]:
            shown = words({"group": group, "attr": attr, "value": values[attr]})
            raise ioctls.SET_DEVICE_ATTR.error(error, shown)

    def _attrs(self, ioctl: Ioctl, group: int, attrs: list[int], values: object) -> tuple[int, int]:
        """Call C; return the number of attributes done, and the errno of the next."""
        ffi, lib = native().ffi, native().lib
        error = ffi.new("int *")
        numbers = ffi.new("uint64_t[]", attrs)
        done = lib.pyvmm_device_attrs(
            self.fd, ioctl.number, group, numbers, len(attrs), values, error
        )
        return done, error[0]

    def _attr(self, ioctl: Ioctl, group: int, attr: int, buffer: bytearray | None) -> None:
        extension = native()
        value = extension.ffi.NULL if buffer is None else extension.ffi.from_buffer(buffer)
        error = extension.lib.pyvmm_device_attr(self.fd, ioctl.number, group, attr, value)
        if error < 0:
            shown: dict[str, int] = {"group": group, "attr": attr}
            if buffer is not None and ioctl is ioctls.SET_DEVICE_ATTR:
                shown["value"] = int.from_bytes(buffer, "little")
            raise ioctl.error(-error, words(shown))


class Device(AttributeFd):
    """A device in the kernel, from Vm.create_device."""
