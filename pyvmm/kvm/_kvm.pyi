"""Types of the C extension (_build.py, run.c)."""

from _cffi_backend import _CDataBase
from cffi import FFI

class SettlerRegion:
    base: int
    end: int

class SettlerPort:
    base: int
    registers: int
    sends: int
    patience: int

class SettlerLatch:
    address: int
    bits: int

class SettlerState:
    unclaimed: int
    regions: int
    region: list[SettlerRegion]
    port: list[SettlerPort]
    latches: int
    latch: list[SettlerLatch]

class VcpuState:
    thread: int
    run: _CDataBase
    reason: int
    length: int
    is_write: int
    address: int
    data: int
    attention: int
    settled: list[int]

class Lib:
    PYVMM_PORTS: int
    PYVMM_LATCHES: int
    PYVMM_REGIONS: int
    PYVMM_SENT: int
    def pyvmm_ioctl(self, fd: int, request: int, argument: int, /) -> int: ...
    def pyvmm_ioctl_at(self, fd: int, request: int, argument: object, /) -> int: ...
    def pyvmm_one_reg(self, fd: int, request: int, id: int, value: object, /) -> int: ...
    def pyvmm_one_regs(
        self, fd: int, request: int, ids: object, count: int, values: object, error: object, /
    ) -> int: ...
    def pyvmm_device_attr(
        self, fd: int, request: int, group: int, attr: int, value: object, /
    ) -> int: ...
    def pyvmm_device_attrs(
        self,
        fd: int,
        request: int,
        group: int,
        attrs: object,
        count: int,
        values: object,
        error: object,
        /,
    ) -> int: ...
    def pyvmm_irq_line(self, vm: int, irq: int, level: int, /) -> int: ...
    def pyvmm_sve_set_vl(self, limit: int, rdvl: _CDataBase, /) -> int: ...
    def pyvmm_counter_frequency(self) -> int: ...
    def pyvmm_vcpu_open(self, vcpu: VcpuState, fd: int, size: int, /) -> int: ...
    def pyvmm_vcpu_close(self, vcpu: VcpuState, /) -> None: ...
    def pyvmm_run(self, vcpu: VcpuState, /) -> int: ...
    def pyvmm_set_mmio_data(self, vcpu: VcpuState, value: int, /) -> None: ...
    def pyvmm_kick(self, vcpu: VcpuState, /) -> None: ...
    def pyvmm_coalesced_pop(self, vcpu: VcpuState, /) -> int: ...
    def pyvmm_vcpu_settle_by(self, vcpu: VcpuState, settler: SettlerState, /) -> None: ...
    def pyvmm_settler_init(self, settler: SettlerState, /) -> None: ...
    def pyvmm_latch_set(self, settler: SettlerState, number: int, bits: int, /) -> None: ...
    def pyvmm_latch_clear(self, settler: SettlerState, number: int, bits: int, /) -> None: ...
    def pyvmm_has_sent(self, settler: SettlerState, number: int, /) -> int: ...
    def pyvmm_take(
        self, settler: SettlerState, number: int, bytes_: object, size: int, /
    ) -> int: ...
    def pyvmm_wait_sent(
        self, settler: SettlerState, number: int, stop: int, soon: int, seldom: int, /
    ) -> int: ...

ffi: FFI
lib: Lib
