"""Hints for KVM's errors, where the errno alone does not explain them.

Source: Documentation/virt/kvm/api.rst and devices/{vm,vcpu,arm-vgic-v3}.rst, and the behaviour of
Linux 5.10, 6.1, 6.12 and 7.2.
"""

from __future__ import annotations

import errno

_BUSY_RUNNING = "kick every vCPU and let its run return first"

HINTS: dict[tuple[str, int], str] = {
    ("open", errno.ENOENT): "enable KVM in this machine's kernel, which must start in EL2, "
    "or use `host`=emulated",
    ("open", errno.EACCES): "add yourself to the group that owns /dev/kvm: "
    "sudo usermod -aG kvm $USER, and log in again",
    ("open", errno.EPERM): "give the container or sandbox access to /dev/kvm",
    ("open", errno.ENXIO): "see dmesg | grep kvm: the kernel has the device file but no KVM",
    ("KVM_CREATE_VM", errno.ENOMEM): "the machine is out of memory or of VM identifiers",
    ("KVM_CREATE_VCPU", errno.EEXIST): "the VM already has a vCPU of that number",
    ("KVM_CREATE_VCPU", errno.EINVAL): "the number is above what KVM_CAP_MAX_VCPUS allows",
    ("KVM_CREATE_VCPU", errno.EBUSY): "create vCPUs before the GIC is initialised",
    ("KVM_CREATE_DEVICE", errno.ENODEV): "this host's kernel or interrupt controller cannot "
    "model that device",
    ("KVM_CREATE_DEVICE", errno.EEXIST): "the VM has an interrupt controller already",
    ("KVM_CREATE_DEVICE", errno.EIO): "the VM has an interrupt controller already",
    ("KVM_SET_USER_MEMORY_REGION", errno.EEXIST): "another slot has some of these guest "
    "physical addresses",
    ("KVM_SET_USER_MEMORY_REGION", errno.EINVAL): "sizes and addresses must be whole pages of "
    "the host, and lie below the VM's guest physical address limit",
    ("KVM_ARM_VCPU_INIT", errno.EINVAL): "the host lacks one of these features, or the vCPU (or "
    "another one of the VM) was initialised with different ones",
    ("KVM_ARM_VCPU_INIT", errno.ENOENT): "this kernel does not know one of these features",
    ("KVM_ARM_VCPU_FINALIZE", errno.EINVAL): "the vCPU was not initialised with that feature",
    ("KVM_ARM_VCPU_FINALIZE", errno.EPERM): "the feature was finalized already",
    ("KVM_RUN", errno.ENOEXEC): "initialise the vCPU first (KVM_ARM_VCPU_INIT)",
    ("KVM_RUN", errno.EPERM): "finalize SVE first (KVM_ARM_VCPU_FINALIZE)",
    ("KVM_RUN", errno.ENXIO): "the GIC has no addresses, or was not initialised",
    ("KVM_RUN", errno.EINVAL): "initialise the GIC, and then the vCPU's PMU",
    ("KVM_RUN", errno.ENOSYS): "the guest accessed a device with an instruction that KVM cannot "
    "decode (KVM_CAP_ARM_NISV_TO_USER would report it)",
    ("KVM_RUN", errno.EFAULT): "the guest's memory is not mapped in this process, or KVM cannot "
    "handle a fault: see dmesg | grep kvm",
    ("KVM_RUN", errno.ENOMEM): "the machine is out of memory",
    ("KVM_RUN", errno.EIO): "the VM belongs to another process (after fork), or KVM stopped it: "
    "see dmesg | grep kvm",
    ("KVM_GET_ONE_REG", errno.ENOEXEC): "initialise the vCPU first (KVM_ARM_VCPU_INIT)",
    ("KVM_SET_ONE_REG", errno.ENOEXEC): "initialise the vCPU first (KVM_ARM_VCPU_INIT)",
    ("KVM_GET_REG_LIST", errno.ENOEXEC): "initialise the vCPU first (KVM_ARM_VCPU_INIT)",
    ("KVM_GET_REG_LIST", errno.EPERM): "finalize SVE first (KVM_ARM_VCPU_FINALIZE)",
    ("KVM_GET_ONE_REG", errno.ENOENT): "this vCPU has no such register: not this kernel, or not "
    "with these features",
    ("KVM_SET_ONE_REG", errno.ENOENT): "this vCPU has no such register: not this kernel, or not "
    "with these features",
    ("KVM_GET_ONE_REG", errno.EPERM): "finalize SVE first (KVM_ARM_VCPU_FINALIZE)",
    ("KVM_SET_ONE_REG", errno.EPERM): "SVE registers come after KVM_ARM_VCPU_FINALIZE, the set "
    "of vector lengths before it",
    ("KVM_GET_ONE_REG", errno.EINVAL): "the register has another size, or SVE replaces it (V "
    "registers are part of Z on a vCPU with SVE)",
    ("KVM_SET_ONE_REG", errno.EINVAL): "the value is not one this vCPU can have, the register "
    "has another size, or SVE replaces it (V registers are part of Z on a vCPU with SVE)",
    ("KVM_SET_ONE_REG", errno.EBUSY): "this register is fixed once a vCPU of the VM has run",
    ("KVM_IRQFD", errno.EAGAIN): "create the GIC first",
    ("KVM_IRQFD", errno.EBUSY): "that eventfd drives an interrupt already",
    ("KVM_IOEVENTFD", errno.EEXIST): "another eventfd has that address and value",
    ("KVM_IOEVENTFD", errno.ENOENT): "there is no eventfd with that address, length and value",
    ("KVM_IRQ_LINE", errno.ENXIO): "create the GIC first; with a GIC only KVM drives a vCPU's IRQ "
    "and FIQ lines",
    ("KVM_IRQ_LINE", errno.EBUSY): "initialise the GIC first",
    ("KVM_IRQ_LINE", errno.EINVAL): "no such interrupt, or no such vCPU: SPIs are INTID 32 up to "
    "the GIC's NR_IRQS, PPIs 16 to 31",
    ("KVM_SIGNAL_MSI", errno.ENODEV): "the VM has no ITS",
    ("KVM_SIGNAL_MSI", errno.EINVAL): "the VM has no ITS at that address",
    ("KVM_SIGNAL_MSI", errno.EBUSY): "the guest has not enabled the ITS",
    ("KVM_GET_DIRTY_LOG", errno.ENOENT): "the slot has no KVM_MEM_LOG_DIRTY_PAGES",
    ("KVM_SET_DEVICE_ATTR", errno.EBUSY): f"set already, or a vCPU is running: {_BUSY_RUNNING}",
    ("KVM_GET_DEVICE_ATTR", errno.EBUSY): f"initialise it first; or a vCPU is running: "
    f"{_BUSY_RUNNING}",
    ("KVM_SET_DEVICE_ATTR", errno.EEXIST): "set already",
    ("KVM_SET_DEVICE_ATTR", errno.ENXIO): "this kernel knows no such attribute here",
    ("KVM_GET_DEVICE_ATTR", errno.ENXIO): "this kernel knows no such attribute here",
    ("KVM_SET_DEVICE_ATTR", errno.E2BIG): "beyond the VM's guest physical addresses",
    ("KVM_ENABLE_CAP", errno.EINVAL): "this kernel cannot enable that, or it is too late",
}


def hint(ioctl: str, error: int) -> str | None:
    """Return the hint for an ioctl's errno, if there is one."""
    if error == errno.ENOTTY:
        return "this kernel is too old for the ioctl, or the file is of another kind"
    if error == errno.EMFILE:
        return "too many open files: raise the limit with ulimit -n"
    return HINTS.get((ioctl, error))
