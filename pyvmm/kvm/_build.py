"""Build the C extension pyvmm.kvm._kvm, for arm64 only: cffi in API mode, one abi3 module.

setup.py uses `extension()`. On another architecture `python -m pyvmm.kvm._build OUT.c` writes the
C file for a cross compiler, without the extension or arm64 headers.

The C file begins with static assertions from pyvmm's tables: every constant, ioctl number,
structure size and member offset must agree with the kernel's headers, else the build fails. For
names that the oldest supported headers (Linux 6.1) lack, an assertion is conditional.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cffi import FFI

from pyvmm.kvm import exits, ioctls, regs, structs, uapi
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.ioctls import Ioctl
from pyvmm.kvm.structs import Struct

if TYPE_CHECKING:
    from setuptools import Extension

MODULE = "pyvmm.kvm._kvm"
LIMITED_API = "0x030b0000"  # Python 3.11

INCLUDES = """
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include <linux/kvm.h>
"""

DECLARATIONS = """
int pyvmm_ioctl(int fd, unsigned long request, unsigned long argument);
int pyvmm_one_reg(int fd, unsigned long request, uint64_t id, void *value);
uint32_t pyvmm_one_regs(int fd, unsigned long request, const uint64_t *ids, uint32_t count,
                        void *values, int *error);
int pyvmm_device_attr(int fd, unsigned long request, uint32_t group, uint64_t attr, void *value);
uint32_t pyvmm_device_attrs(int fd, unsigned long request, uint32_t group, const uint64_t *attrs,
                            uint32_t count, uint64_t *values, int *error);
int pyvmm_irq_line(int vm, uint32_t irq, int level);
int pyvmm_sve_set_vl(unsigned long limit, uint64_t *rdvl);
void pyvmm_sync_code(void *start, size_t size);
uint64_t pyvmm_counter_frequency(void);

#define PYVMM_UARTS ...
#define PYVMM_ISRS ...
#define PYVMM_REGIONS ...
#define PYVMM_TX_SIZE ...
struct pyvmm_region { uint64_t base; uint64_t end; };
struct pyvmm_uart {
    uint64_t base;
    uint64_t registers;
    uint32_t complete_thr;
    int32_t exits_left;
    uint32_t irq;
    int32_t vm;
    int32_t exits_first;
    ...;
};
struct pyvmm_isr {
    uint64_t address;
    uint32_t bits;
    uint32_t always;
    ...;
};
struct pyvmm_rtc {
    uint64_t base;
    int64_t offset;
    int64_t alarm_at;
    uint32_t registers[...];
};
struct pyvmm_fast_mmio {
    uint32_t complete_unclaimed;
    uint32_t regions;
    struct pyvmm_region region[...];
    struct pyvmm_uart uart[...];
    uint32_t isrs;
    struct pyvmm_isr isr[...];
    struct pyvmm_rtc rtc;
    ...;
};
void pyvmm_fast_mmio_init(struct pyvmm_fast_mmio *fast);
void pyvmm_lend_uart(struct pyvmm_fast_mmio *fast, int number, int thr_emptied, int raised);
int pyvmm_retake_uart(struct pyvmm_fast_mmio *fast, int number);
void pyvmm_isr_set(struct pyvmm_fast_mmio *fast, int number, uint32_t bits);
void pyvmm_isr_clear(struct pyvmm_fast_mmio *fast, int number, uint32_t bits);
void pyvmm_set_doorbell(struct pyvmm_fast_mmio *fast, int number, uint32_t queue,
                        int (*serve)(void *device), void *device);
int pyvmm_has_tx(struct pyvmm_fast_mmio *fast, int number);
size_t pyvmm_take_tx(struct pyvmm_fast_mmio *fast, int number, uint8_t *bytes, size_t size);
int pyvmm_wait_tx(struct pyvmm_fast_mmio *fast, int number, int stop, int min_ms, int max_ms);

struct pyvmm_vcpu {
    int thread;
    struct kvm_run *run;
    uint32_t reason;
    uint32_t length;
    uint32_t is_write;
    uint64_t address;
    uint64_t data;
    uint32_t attention;
    uint64_t completed[...];
    uint64_t unclaimed;
    ...;
};
int pyvmm_vcpu_open(struct pyvmm_vcpu *vcpu, int fd, size_t size);
void pyvmm_vcpu_close(struct pyvmm_vcpu *vcpu);
int pyvmm_run(struct pyvmm_vcpu *vcpu);
void pyvmm_set_mmio_data(struct pyvmm_vcpu *vcpu, uint64_t value);
void pyvmm_kick(struct pyvmm_vcpu *vcpu);
void pyvmm_vcpu_use_fast_mmio(struct pyvmm_vcpu *vcpu, struct pyvmm_fast_mmio *fast);
"""
HERE = Path(__file__).parent
DATA_PATH = HERE / "datapath"
SOURCES = (
    *(DATA_PATH / name for name in ("datapath.h", "splitqueue.c", "blk.c", "console.c", "rng.c")),
    *(HERE / name for name in ("fastmmio.c", "run.c")),
)


def data_path_declarations() -> str:
    """Return the declarations of the data path, in which C and Python share whole structures."""
    iovec = "struct iovec { void *iov_base; size_t iov_len; };\n"
    return iovec + (DATA_PATH / "datapath.h").read_text(encoding="utf-8")


# The kernel's prefix of each class's names.
PREFIXES: dict[type[IntEnum], str] = {
    Cap: "KVM_CAP_",
    uapi.ExitReason: "KVM_EXIT_",
    uapi.SystemEvent: "KVM_SYSTEM_EVENT_",
    uapi.InternalError: "KVM_INTERNAL_ERROR_",
    uapi.MpState: "KVM_MP_STATE_",
    uapi.VcpuFeature: "KVM_ARM_VCPU_",
    uapi.DeviceType: "KVM_DEV_TYPE_",
    uapi.VgicGroup: "KVM_DEV_ARM_VGIC_GRP_",
    uapi.VgicAddr: "KVM_VGIC_",
    uapi.VgicCtrl: "KVM_DEV_ARM_",
    uapi.VcpuGroup: "KVM_ARM_VCPU_",
    uapi.PmuAttr: "KVM_ARM_VCPU_PMU_V3_",
    uapi.PvtimeAttr: "KVM_ARM_VCPU_PVTIME_",
}

# The names in C that the oldest supported headers (Linux 6.1) lack.
NEWER = frozenset(
    {
        *(f"KVM_CAP_{cap.name}" for cap in Cap if cap >= Cap.DIRTY_LOG_RING_WITH_BITMAP),
        "KVM_EXIT_MEMORY_FAULT",
        "KVM_EXIT_ARM_SEA",
        "KVM_EXIT_ARM_LDST64B",
        "KVM_ARM_VCPU_HAS_EL2",
        "KVM_ARM_VCPU_HAS_EL2_E2H0",
        "KVM_DEV_ARM_VGIC_GRP_MAINT_IRQ",
        "KVM_REG_ARM_VENDOR_HYP_BMAP_2",
        "KVM_ARM_GET_REG_WRITABLE_MASKS",
        "KVM_ARM_FEATURE_ID_RANGE",
        "KVM_ARM_FEATURE_ID_RANGE_SIZE",
    }
)

# The registers' names in C.
REGISTERS = {
    **{f"KVM_REG_SIZE_U{8 << n}": size for n, size in enumerate(regs.SIZES)},
    "KVM_REG_ARM64": regs.ARM64,
    "KVM_REG_ARM_CORE": regs.CORE,
    "KVM_REG_ARM_DEMUX": regs.DEMUX,
    "KVM_REG_ARM64_SYSREG": regs.SYSREG,
    "KVM_REG_ARM_FW": regs.FW,
    "KVM_REG_ARM64_SVE": regs.SVE,
    "KVM_REG_ARM_FW_FEAT_BMAP": regs.FW_FEAT_BMAP,
    "KVM_REG_ARM64_SVE_VLS": regs.SVE_VLS,
    **{
        f"KVM_REG_ARM_{name}": reg_id
        for name, reg_id in regs.fixed().items()
        if name.startswith(("TIMER", "PTIMER", "PSCI", "SMCCC", "STD", "VENDOR"))
    },
    **{f"KVM_REG_ARM64_SVE_ZREG({n}, 0)": regs.Z(n) for n in (0, 1, 31)},
    **{f"KVM_REG_ARM64_SVE_PREG({n}, 0)": regs.P(n) for n in (0, 1, 15)},
    "KVM_REG_ARM64_SVE_FFR(0)": regs.FFR(),
    "KVM_REG_ARM64_SVE_ZREG(3, 5)": regs.Z(3, 5),
    "ARM64_SYS_REG(3, 7, 15, 14, 5)": regs.sysreg(3, 7, 15, 14, 5),
    **{
        f"KVM_REG_ARM_CORE_REG({member})": reg_id & 0xFFFF
        for member, reg_id in {
            "regs.regs[0]": regs.X(0),
            "regs.regs[30]": regs.X(30),
            "regs.sp": regs.SP_EL0,
            "regs.pc": regs.PC,
            "regs.pstate": regs.PSTATE,
            "sp_el1": regs.SP_EL1,
            "elr_el1": regs.ELR_EL1,
            "spsr[KVM_SPSR_EL1]": regs.SPSR_EL1,
            "spsr[KVM_SPSR_ABT]": regs.SPSR_ABT,
            "spsr[KVM_SPSR_UND]": regs.SPSR_UND,
            "spsr[KVM_SPSR_IRQ]": regs.SPSR_IRQ,
            "spsr[KVM_SPSR_FIQ]": regs.SPSR_FIQ,
            "fp_regs.vregs[0]": regs.V(0),
            "fp_regs.vregs[31]": regs.V(31),
            "fp_regs.fpsr": regs.FPSR,
            "fp_regs.fpcr": regs.FPCR,
        }.items()
    },
}


def constants() -> Iterator[tuple[str, int]]:
    """Yield pyvmm's constants of the kernel, by their names in C."""
    for name, value in vars(uapi).items():
        if name.isupper():
            yield f"KVM_{name}", value
    for kind, prefix in PREFIXES.items():
        for member in kind:
            yield prefix + member.name, member
    yield from REGISTERS.items()


def static_asserts() -> Iterator[str]:
    """Yield lines of C that compile only if pyvmm's tables and the headers agree."""
    for name, value in constants():
        yield from _guarded(name if name in NEWER else "", f"{name} == {value:#x}", name)
    for item in vars(ioctls).values():
        if isinstance(item, Ioctl):
            condition = f"{item.name} == {item.number:#x}"
            yield from _guarded(item.name if item.name in NEWER else "", condition, item.name)
    for item in (*vars(structs).values(), *exits.PARTS.values()):
        if isinstance(item, Struct):
            yield from _struct_asserts(item)


def _struct_asserts(item: Struct) -> Iterator[str]:
    if not item.at:
        condition = f"sizeof({item.ctype}) == {item.size}"
        yield from _guarded(item.newer, condition, f"size of {item.ctype}")
    if not item.ctype.startswith("struct "):
        return
    for member in item.members:
        if not member.is_padding:
            place = f"offsetof({item.ctype}, {member.path})"
            what = f"{item.ctype}.{member.path}"
            yield from _guarded(item.newer, f"{place} == {member.offset}", f"offset of {what}")
            size = member.length * structs.code_size(member.code)
            condition = f"sizeof((({item.ctype} *)0)->{member.path}) == {size}"
            yield from _guarded(item.newer, condition, f"size of {what}")


def _guarded(macro: str, condition: str, what: str) -> Iterator[str]:
    if macro:
        yield f"#ifdef {macro}"
    yield f'_Static_assert({condition}, "{what}: pyvmm and the kernel\'s headers differ");'
    if macro:
        yield "#endif"


def builder() -> FFI:
    """Return the declarations and the C source."""
    ffi = FFI()
    ffi.cdef(DECLARATIONS + data_path_declarations())
    bodies = [path.read_text(encoding="utf-8") for path in SOURCES]
    source = "\n".join((INCLUDES, *static_asserts(), *bodies))
    ffi.set_source(MODULE, source, py_limited_api=True)
    return ffi


def extension() -> Extension:
    """Return the extension for setuptools."""
    ext = cast("Extension", builder().distutils_extension())
    ext.define_macros.append(("Py_LIMITED_API", LIMITED_API))
    ext.py_limited_api = True
    return ext


def emit_c_source(path: Path) -> None:
    """Write the extension's C file.

    Compile it with Python's headers of any architecture:
    ``-shared -fPIC -O2 -DPy_LIMITED_API=0x030b0000 -I<python include> -o _kvm.abi3.so``.
    """
    builder().emit_c_code(str(path))


if __name__ == "__main__":
    emit_c_source(Path(sys.argv[1]))
