"""A virtual CPU: its runs, its registers and its other state."""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pyvmm.base.records import Record
from pyvmm.errors import KvmError
from pyvmm.kvm import ioctls, regs, structs
from pyvmm.kvm.device import AttributeFd
from pyvmm.kvm.exits import UNION_OFFSET, UNION_SIZE, Exit, decode
from pyvmm.kvm.ioctls import Ioctl
from pyvmm.kvm.native import native
from pyvmm.kvm.uapi import ExitReason, MpState, PmuAttr, PvtimeAttr, VcpuFeature, VcpuGroup

# Faster at each exit than the class's attributes; to compare two plain ints is fastest
_MMIO, _INTR = ExitReason.MMIO, ExitReason.INTR
_MMIO_VALUE = _MMIO.value


class VcpuEvents(Record):
    """Pending exceptions; ``ext_dabt_pending`` can only be set."""

    serror_pending: bool = False
    serror_has_esr: bool = False
    serror_esr: int = 0
    ext_dabt_pending: bool = False


class Vcpu(AttributeFd):
    """A virtual CPU, made by Vm.create_vcpu.

    Any thread may run it, one at a time. During a run other threads may only call kick(): KVM
    blocks every other ioctl until KVM_RUN returns.
    """

    def __init__(self, fd: int, vcpu_id: int, mmap_size: int) -> None:
        super().__init__(fd)
        self.id = vcpu_id
        extension = native()
        self._ffi, self._lib = extension.ffi, extension.lib
        self._state = self._ffi.new("struct pyvmm_vcpu *")
        self._fast: Any = None
        self.attention = False  # the FastMmio's owner had work at the end of the last run
        # Orders a kick and close(); reentrant, for a kick from a signal handler.
        self._open_lock = threading.RLock()
        error = self._lib.pyvmm_vcpu_open(self._state, fd, mmap_size)
        if error:
            super().close()
            raise KvmError("mmap", f"vcpu {vcpu_id}, {mmap_size} bytes", -error)
        shared = self._ffi.cast("char *", self._state.run)
        self._union = memoryview(self._ffi.buffer(shared + UNION_OFFSET, UNION_SIZE))

    def close(self) -> None:
        """Close the vCPU; no thread may be running it."""
        with self._open_lock:
            if self.fd < 0:
                return
            if self._state.thread:
                raise RuntimeError(f"vCPU {self.id} is running: kick it and join its thread")
            self._lib.pyvmm_vcpu_close(self._state)
            super().close()

    # Before the first run

    def init(self, target: int, features: Iterable[int]) -> None:
        """Reset the vCPU, with these VcpuFeature numbers (KVM_ARM_VCPU_INIT).

        ``target`` is Vm.preferred_target(). A second call needs the same features.
        """
        chosen = sorted(set(features))
        bitmap = sum(1 << feature for feature in chosen)
        packed = structs.VCPU_INIT.pack(
            {"target": target, "features": [bitmap >> 32 * n & 0xFFFF_FFFF for n in range(7)]}
        )

        def shown() -> str:
            names = " ".join(map(_feature, chosen))
            return f"vcpu {self.id}, target={target}, features=[{names}]"

        ioctls.ARM_VCPU_INIT.at(self.fd, packed, shown)

    def finalize(self, feature: int) -> None:
        """Finalize a feature, such as SVE's vector lengths (KVM_ARM_VCPU_FINALIZE)."""
        packed = structs.INT.pack({"value": feature})
        ioctls.ARM_VCPU_FINALIZE.at(self.fd, packed, f"vcpu {self.id}, {_feature(feature)}")

    def init_pmu(self, intid: int) -> None:
        """Set the PMU's private interrupt and initialise the PMU, after the GIC.

        Source: Documentation/virt/kvm/devices/vcpu.rst, KVM_ARM_VCPU_PMU_V3_CTRL.
        """
        self.set_attr(VcpuGroup.PMU_V3_CTRL, PmuAttr.IRQ, intid)
        self.set_attr(VcpuGroup.PMU_V3_CTRL, PmuAttr.INIT)

    def set_pvtime(self, guest_phys_addr: int) -> None:
        """Set the address of the vCPU's stolen time: 64 bytes of the guest's RAM.

        Source: Documentation/virt/kvm/devices/vcpu.rst, KVM_ARM_VCPU_PVTIME_CTRL.
        """
        self.set_attr(VcpuGroup.PVTIME_CTRL, PvtimeAttr.IPA, guest_phys_addr)

    # Registers

    def get_one_reg(self, reg_id: int) -> int:
        """Read a register of any size, as a number with the register's own bit order."""
        buffer = bytearray(regs.size(reg_id))
        error = self._lib.pyvmm_one_reg(
            self.fd, ioctls.GET_ONE_REG.number, reg_id, self._ffi.from_buffer(buffer)
        )
        if error:
            raise ioctls.GET_ONE_REG.error(-error, self._register(reg_id))
        return int.from_bytes(buffer, "little")

    def set_one_reg(self, reg_id: int, value: int) -> None:
        """Write a register of any size.

        Raises: OverflowError, for a value that is negative or too wide for the register.
        """
        error = self._lib.pyvmm_one_reg(
            self.fd,
            ioctls.SET_ONE_REG.number,
            reg_id,
            value.to_bytes(regs.size(reg_id), "little"),
        )
        if error:
            raise ioctls.SET_ONE_REG.error(-error, f"{self._register(reg_id)}, {value:#x}")

    def get_regs(self, reg_ids: Iterable[int]) -> dict[int, int | KvmError]:
        """Read many registers as get_one_reg() does; return an error for each refused one."""
        ids = list(reg_ids)
        buffer = bytearray(sum(map(regs.size, ids)))
        refused = self._one_regs(ioctls.GET_ONE_REG, ids, buffer)
        found: dict[int, int | KvmError] = {}
        at = 0
        for reg_id in ids:
            end = at + regs.size(reg_id)
            found[reg_id] = int.from_bytes(buffer[at:end], "little")
            at = end
        for reg_id, error in refused.items():
            found[reg_id] = ioctls.GET_ONE_REG.error(error, self._register(reg_id))
        return found

    def set_regs(self, values: Mapping[int, int]) -> dict[int, KvmError]:
        """Write many registers in order, as set_one_reg() does; return the errors.

        Raises: OverflowError, for a value that is negative or too wide for its register.
        """
        packed = [value.to_bytes(regs.size(reg_id), "little") for reg_id, value in values.items()]
        refused = self._one_regs(ioctls.SET_ONE_REG, list(values), bytearray().join(packed))
        return {
            reg_id: ioctls.SET_ONE_REG.error(
                error, f"{self._register(reg_id)}, {values[reg_id]:#x}"
            )
            for reg_id, error in refused.items()
        }

    def _one_regs(self, ioctl: Ioctl, reg_ids: list[int], buffer: bytearray) -> dict[int, int]:
        """Run that ioctl for each register, with packed values; return the errnos of refusals."""
        ids, error = self._ffi.new("uint64_t[]", reg_ids), self._ffi.new("int *")
        values = self._ffi.from_buffer("char[]", buffer)
        refused: dict[int, int] = {}
        first = at = 0
        while first < len(reg_ids):
            done = self._lib.pyvmm_one_regs(
                self.fd, ioctl.number, ids + first, len(reg_ids) - first, values + at, error
            )
            stopped = reg_ids[first + done : first + done + 1]
            refused |= dict.fromkeys(stopped, error[0])
            at += sum(map(regs.size, [*reg_ids[first : first + done], *stopped]))
            first += done + 1
        return refused

    def _register(self, reg_id: int) -> str:
        return f"vcpu {self.id}, {regs.name(reg_id)}"

    def get_reg_list(self) -> list[int]:
        """Return the ids of all registers of the vCPU."""
        count = 0
        while True:
            buffer = bytearray(8 + count * 8)
            struct.pack_into("<Q", buffer, 0, count)
            try:
                ioctls.GET_REG_LIST.at(self.fd, buffer, f"vcpu {self.id}, n={count}")
            except KvmError as error:
                if error.errno != errno.E2BIG:
                    raise
            (needed,) = struct.unpack_from("<Q", buffer)
            if needed <= count:
                return list(struct.unpack_from(f"<{needed}Q", buffer, 8))
            count = needed

    # Running

    def run(self) -> Exit:
        """Run the guest until an exit, a kick() or a signal; a FastMmio completes some exits.

        After an MMIO read, call set_mmio_data() first.
        """
        state = self._state
        error = self._lib.pyvmm_run(state)
        if self._fast is not None:
            self.attention = state.attention != 0
        if error:
            if error == -errno.EINTR:
                return Exit(_INTR)
            raise ioctls.RUN.error(-error, f"vcpu {self.id}")
        reason = state.reason
        if reason == _MMIO_VALUE:
            return Exit(
                _MMIO,
                state.address,
                state.length,
                state.is_write != 0,
                state.data,
            )
        return decode(reason, self._union)

    def kick(self) -> None:
        """Make the current run() return INTR, or else the next one.

        Safe from any thread, at any time, also after close(). Several kicks before run() returns
        count as one. A run() right after a kick completes the last exit, executes nothing and
        returns INTR: a snapshot relies on this to complete an MMIO access.
        Source: Documentation/virt/kvm/api.rst, immediate_exit (KVM_CAP_IMMEDIATE_EXIT).
        """
        with self._open_lock:
            if self.fd >= 0:
                self._lib.pyvmm_kick(self._state)

    def set_mmio_data(self, value: int) -> None:
        """Set the value of an MMIO read; bits above the access's length are ignored."""
        self._lib.pyvmm_set_mmio_data(self._state, value & 0xFFFF_FFFF_FFFF_FFFF)

    def use_fast_mmio(self, fast: Any) -> None:
        """Let C complete exits with that FastMmio's state; before the first run."""
        self._fast = fast  # a reference, as C uses it
        self._lib.pyvmm_vcpu_use_fast_mmio(self._state, fast)

    def completed_mmio(self) -> tuple[list[int], list[int]]:
        """Return the numbers of reads and of writes that C completed.

        One number for each UART, then one each for interrupt status, for unclaimed accesses, for
        the real-time clock and for doorbells.
        """
        counts = list(self._state.completed)
        return counts[::2], counts[1::2]

    @property
    def last_unclaimed(self) -> int:
        """The address of the last access that no device claims; 0 before the first."""
        address: int = self._state.unclaimed
        return address

    @last_unclaimed.setter
    def last_unclaimed(self, address: int) -> None:
        self._state.unclaimed = address

    # State besides registers

    def get_mp_state(self) -> int:
        """Return the vCPU's power state, an MpState."""
        return MpState(ioctls.GET_MP_STATE.read(self.fd)["mp_state"])

    def set_mp_state(self, mp_state: int) -> None:
        """Switch the vCPU on or off."""
        ioctls.SET_MP_STATE.write(self.fd, mp_state=mp_state)

    def get_vcpu_events(self) -> VcpuEvents:
        """Return the pending exceptions."""
        reply = ioctls.GET_VCPU_EVENTS.read(self.fd)
        return VcpuEvents(
            serror_pending=bool(reply["serror_pending"]),
            serror_has_esr=bool(reply["serror_has_esr"]),
            serror_esr=reply["serror_esr"],
            ext_dabt_pending=bool(reply["ext_dabt_pending"]),
        )

    def set_vcpu_events(self, events: VcpuEvents) -> None:
        """Set the pending exceptions; a syndrome needs ARM_INJECT_SERROR_ESR."""
        ioctls.SET_VCPU_EVENTS.write(
            self.fd,
            serror_pending=int(events.serror_pending),
            serror_has_esr=int(events.serror_has_esr),
            serror_esr=events.serror_esr,
            ext_dabt_pending=int(events.ext_dabt_pending),
        )

    def set_guest_debug(
        self,
        control: int,
        *,
        breakpoints: Sequence[tuple[int, int]] = (),
        watchpoints: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Single-step, or stop at break- and watchpoints; ``control`` is the uapi.GUESTDBG_* bits.

        A breakpoint is a pair for DBGBCR and DBGBVR, a watchpoint a pair for DBGWCR and DBGWVR.
        ``control`` 0 ends debugging.
        """
        ioctls.SET_GUEST_DEBUG.write(
            self.fd,
            control=control,
            dbg_bcr=[bcr for bcr, _ in breakpoints],
            dbg_bvr=[bvr for _, bvr in breakpoints],
            dbg_wcr=[wcr for wcr, _ in watchpoints],
            dbg_wvr=[wvr for _, wvr in watchpoints],
        )

    def get_stats_fd(self) -> int:
        """Return a file descriptor of the vCPU's binary statistics; the caller closes it."""
        return ioctls.GET_STATS_FD(self.fd)


def _feature(number: int) -> str:
    try:
        return VcpuFeature(number).name
    except ValueError:
        return str(number)
