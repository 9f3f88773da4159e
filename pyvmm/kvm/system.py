"""/dev/kvm: the host's capabilities, and the creation of VMs."""

from __future__ import annotations

import errno
import os
from typing import Self

from pyvmm.errors import HostError, KvmError
from pyvmm.kvm import ioctls, uapi
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.device import Fd
from pyvmm.kvm.native import native
from pyvmm.kvm.structs import words
from pyvmm.kvm.vm import Vm


class System(Fd):
    """The host's KVM."""

    @classmethod
    def open(cls, path: str = "/dev/kvm") -> Self:
        """Open the host's KVM.

        Raises:
            HostError: another architecture, or another version of KVM's interface.
            KvmError: the file cannot be opened.
        """
        native()
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            from pyvmm.kvm.hints import hint

            number = error.errno or errno.EIO
            raise KvmError("open", path, number, hint=hint("open", number)) from error
        system = cls(fd)
        try:
            version = system.get_api_version()
            if version != uapi.API_VERSION:
                raise HostError(f"{path} has API version {version}, not {uapi.API_VERSION}")
        except BaseException:
            system.close()
            raise
        return system

    def get_api_version(self) -> int:
        """Return the version of KVM's interface: 12 since 2007."""
        return ioctls.GET_API_VERSION(self.fd)

    def check_extension(self, cap: int) -> int:
        """Return the host's value of a capability: 0 for absent, else as Cap documents.

        MSI_DEVID is 0 too: only a VM has its value, and /dev/kvm returns EINVAL.
        """
        try:
            return ioctls.CHECK_EXTENSION(self.fd, cap, lambda: words({"cap": cap}))
        except KvmError as error:
            if error.errno == errno.EINVAL:
                return 0
            raise

    def has(self, cap: int) -> bool:
        """Return whether the host has that capability."""
        return self.check_extension(cap) > 0

    def get_vcpu_mmap_size(self) -> int:
        """Return the size of the memory that a vCPU shares with this process."""
        return ioctls.GET_VCPU_MMAP_SIZE(self.fd)

    def create_vm(self, ipa_bits: int = 0) -> Vm:
        """Create a VM with guest physical addresses of that many bits; 0 is KVM's default, 40."""
        try:
            fd = ioctls.CREATE_VM(self.fd, ipa_bits, f"ipa_bits={ipa_bits}")
        except KvmError as error:
            if error.errno == errno.EINVAL:
                offered = self.check_extension(Cap.ARM_VM_IPA_SIZE) or 40
                error.hint = (
                    f"the host offers 32 to {offered} bits of guest physical address: "
                    "use less memory"
                )
            raise
        return Vm(fd, self.get_vcpu_mmap_size())
