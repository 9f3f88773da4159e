"""Types of the C extension (_build.py, run.c)."""

from _cffi_backend import _CDataBase
from cffi import FFI

class RegionState:
    base: int
    end: int

class UartState:
    base: int
    registers: int
    complete_thr: int
    exits_left: int

class IsrState:
    address: int
    bits: int

class FastMmioState:
    complete_unclaimed: int
    regions: int
    region: list[RegionState]
    uart: list[UartState]
    isrs: int
    isr: list[IsrState]

class VcpuState:
    thread: int
    run: _CDataBase
    reason: int
    length: int
    is_write: int
    address: int
    data: int
    attention: int
    completed: list[int]

class Lib:
    PYVMM_UARTS: int
    PYVMM_ISRS: int
    PYVMM_REGIONS: int
    PYVMM_TX_SIZE: int
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
    def pyvmm_vcpu_use_fast_mmio(self, vcpu: VcpuState, fast: FastMmioState, /) -> None: ...
    def pyvmm_fast_mmio_init(self, fast: FastMmioState, /) -> None: ...
    def pyvmm_isr_set(self, fast: FastMmioState, number: int, bits: int, /) -> None: ...
    def pyvmm_isr_clear(self, fast: FastMmioState, number: int, bits: int, /) -> None: ...
    def pyvmm_has_tx(self, fast: FastMmioState, number: int, /) -> int: ...
    def pyvmm_take_tx(
        self, fast: FastMmioState, number: int, bytes_: object, size: int, /
    ) -> int: ...
    def pyvmm_wait_tx(
        self, fast: FastMmioState, number: int, stop: int, min_ms: int, max_ms: int, /
    ) -> int: ...

ffi: FFI
lib: Lib
