"""The promises of documents about SVE guests, in our words: every case checks one of them.

The sections of api.rst have the same numbers in Linux 5.2, the first with SVE guests, and in 6.8.
The document calls the errors of 4.68 and 4.69 indicative, but the run requires them.  If a
document leaves something open, the promise names the code.
"""

from __future__ import annotations

from pyvmm.svecheck.case import Known, Promise

_API = "Documentation/virt/kvm/api.rst"
_SEED = "[PATCH v4 00/25] KVM: arm64: SVE guest support"
_ARM = "Arm ARM DDI 0487"

_SET = "4.68 KVM_SET_ONE_REG"
_INIT = "4.82 KVM_ARM_VCPU_INIT"
_LIST = "4.84 KVM_GET_REG_LIST"
_FINALIZE = "4.119 KVM_ARM_VCPU_FINALIZE"
_ISSUES = "known issues"

# The capability and KVM_ARM_VCPU_INIT
CAPABILITY = Promise("KVM_ARM_VCPU_SVE depends on KVM_CAP_ARM_SVE", _API, _INIT)
RUN_NEEDS_INIT = Promise("before INIT, KVM_RUN fails with ENOEXEC", _API, _INIT)
ALL_NEED_INIT = Promise(
    "undocumented: a vCPU that was not initialised is ENOEXEC",
    "arch/arm64/kvm/arm.c",
    "kvm_arch_vcpu_ioctl()",
)
UNKNOWN_TARGET = Promise("INIT with an unknown target is EINVAL", _API, _INIT)
UNKNOWN_FEATURE = Promise("INIT with an unknown feature is ENOENT", _API, _INIT)
FEATURE_32BIT = Promise(
    "KVM_ARM_VCPU_EL1_32BIT depends on its capability; nothing forbids SVE beside it", _API, _INIT
)
INITIAL_SET = Promise("INIT sets the best set of vector lengths the host has", _API, _SET)
RESET_CORE = Promise("INIT resets PC, SP and general registers to 0, PSTATE to EL1h", _API, _INIT)
RESET_SVE = Promise("INIT resets FPSIMD and SVE registers to 0, also after a run", _API, _INIT)
RESET_SYSREGS = Promise("INIT resets system registers as a warm reset would", _API, _INIT)
SAME_FEATURES = Promise(
    "INIT again must name the same target and features, else EINVAL", _API, _INIT
)
AGAIN = Promise("INIT may be called again, also after a run, and resets the vCPU", _API, _INIT)

# KVM_ARM_VCPU_FINALIZE
FINALIZE = Promise("after INIT with the feature, FINALIZE fixes it", _API, _FINALIZE)
FINALIZE_TWICE = Promise("a second FINALIZE of a feature is EPERM", _API, _FINALIZE)
FINALIZE_ABSENT = Promise("FINALIZE of an unknown or absent feature is EINVAL", _API, _FINALIZE)
RUN_NEEDS_FINALIZE = Promise("KVM_RUN is not available before FINALIZE: EPERM", _API, _FINALIZE)
RUNS = Promise("a vCPU is fully usable after FINALIZE", _API, _FINALIZE)
LIST_NEEDS_FINALIZE = Promise(
    "KVM_GET_REG_LIST is not available before FINALIZE: EPERM", _API, _FINALIZE
)
REGS_NEED_FINALIZE = Promise(
    "Z, P and FFR are not accessible before FINALIZE: EPERM", _API, _FINALIZE
)

# KVM_REG_ARM64_SVE_VLS
VLS_READABLE = Promise("the set can be read after INIT", _API, _INIT)
VLS_WRITABLE = Promise("the set can be written between INIT and FINALIZE", _API, _SET)
VLS_IMMUTABLE = Promise("writing the set after FINALIZE is EPERM", _API, _SET)
VLS_ENCODING = Promise("bit n of eight 64-bit words is the length (n + 1) x 128 bits", _API, _SET)
PREFIX_SETS = Promise(
    "a set that leaves out just the host's lengths above some value is valid", _API, _SET
)
INVALID_SET = Promise("a set the host cannot give is EINVAL", _API, _SET)
FAILED_SET = Promise(
    "undocumented: a set that is refused changes nothing", "arch/arm64/kvm/guest.c", "set_sve_vls()"
)

# Registers
NEEDS_SVE = Promise("SVE registers are only accessible on vCPUs with SVE", _API, _SET)
V_REPLACED = Promise("V0 to V31 are not accepted on vCPUs with SVE", _API, f"{_SET}, note 1")
V_ACCEPTED = Promise("V0 to V31 are core registers", _API, _SET)
CORE = Promise("the id of a core register has its offset in struct kvm_regs", _API, _SET)
SYSREGS = Promise("the id of a system register has its encoding", _API, _SET)
SLICES = Promise("slices at or above the longest length are ENOENT", _API, _SET)
SVE_IDS = Promise("Zn is 2048 bits, Pn and FFR 256, the set 512, at fixed numbers", _API, _SET)
BAD_ID = Promise("an invalid register id is EINVAL", _API, _SET)
REG_VALUES = Promise("a slice of Zn holds its bits 2047:0, one of Pn and FFR 255:0", _API, _SET)
FFR_VALUES = Promise(
    "undocumented: KVM keeps any value of FFR, even one that no instruction makes",
    "arch/arm64/kvm/guest.c",
    "set_sve_reg()",
)
NO_KVM_REGS = Promise("KVM_GET_REGS and KVM_GET_FPU are not for arm64", _API, "4.11 KVM_GET_REGS")
ID_OPT_OUT = Promise(
    "INIT enables SVE; ID registers show the vCPU's features",
    "Documentation/virt/kvm/arm/vcpu-features.rst",
    "The ID Registers",
)

# KVM_GET_REG_LIST
LISTS = Promise("the list has the registers that GET and SET accept", _API, _LIST)
LIST_TOO_BIG = Promise("E2BIG if the array is too small, and n is the needed size", _API, _LIST)
LIST_ORDER = Promise(
    "undocumented: core registers, then the set, then other SVE registers",
    "arch/arm64/kvm/guest.c",
    "kvm_arm_copy_reg_indices()",
)

# The seed series
SEED_NOT_LISTED = Promise("slices that are not needed are not enumerated", _SEED, _ISSUES)
SEED_RAZ_WI = Promise("slices that are not needed read as zero and ignore writes", _SEED, _ISSUES)
SEED_SLICES = Promise(
    "the number of slices is what the longest length needs, rounded up", _SEED, _ISSUES
)

# What guests see
PFR0 = Promise("ID_AA64PFR0_EL1.SVE is 1 on a CPU with SVE, 0 without", _ARM, "D23.2")
ZFR0 = Promise("ID_AA64ZFR0_EL1 is 0 on a CPU without SVE", _ARM, "D23.2")
ZCR_LEN = Promise("ZCR_EL1.LEN is bits 3:0; bits 8:4 read as zero", _ARM, "ZCR_EL1")
ZCR_SELECTS = Promise(
    "the length is the longest the CPU has of at most (LEN + 1) x 128 bits", _ARM, "ZCR_EL1.LEN"
)
UNDEFINED = Promise("SVE on a CPU without it is UNDEFINED", _ARM, "A64 instruction descriptions")
V_IS_LOW_Z = Promise("V registers are bits 127:0 of Z registers", _API, f"{_SET}, note 1")

# Several vCPUs
ONE_VM_ONE_SET = Promise(
    "undocumented: each vCPU's set is its own, and none is checked against another's",
    "arch/arm64/kvm/guest.c",
    "set_sve_vls()",
)
ONE_VM_FEATURES = Promise(
    "undocumented: all vCPUs of a VM have the same features, except for POWER_OFF",
    "arch/arm64/kvm/arm.c",
    "kvm_vcpu_init_changed()",
)
POWER_OFF = Promise("KVM_ARM_VCPU_POWER_OFF starts a vCPU off", _API, _INIT)

# Differences that are on purpose
POWER_OFF_MAY_CHANGE = Known(
    "ok", "since Linux 6.5 POWER_OFF may change (e3c1c0cae31e), which api.rst does not say"
)
FEATURES_MAY_DIFFER = Known("ok", "before Linux 6.5 a VM's vCPUs could differ (2251e9ff1573)")
ZFR0_FIXED = Known("EINVAL", "before Linux 6.7 it could not be changed (f89fbb350dd7)")
TIMERS_AMONG_SYSREGS = "since Linux 6.18 timers are listed among system registers (c3be3a48fb18)"
NEVER_RAZ_WI = Known("ENOENT", "since Linux 5.2, the first with SVE guests (e1c9c98345b3)")
