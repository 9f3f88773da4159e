"""The promises of documents about SVE guests, in our words: every case checks one of them.

The sections of api.rst have the same numbers in Linux 5.2, the first with SVE guests, and in 6.8.
The document calls the errors of 4.68 and 4.69 indicative, but the run requires them.  If a
document leaves something open, the promise names the code.
"""

from __future__ import annotations

from functools import partial

from pyvmm.svecheck.case import Known, Promise

_API = "Documentation/virt/kvm/api.rst"

# Each makes a promise of one section, or of one file.
_set = partial(Promise, document=_API, section="4.68 KVM_SET_ONE_REG")
_note = partial(Promise, document=_API, section="4.68 KVM_SET_ONE_REG, note 1")
_init = partial(Promise, document=_API, section="4.82 KVM_ARM_VCPU_INIT")
_list = partial(Promise, document=_API, section="4.84 KVM_GET_REG_LIST")
_finalize = partial(Promise, document=_API, section="4.119 KVM_ARM_VCPU_FINALIZE")
_arm_c = partial(Promise, document="arch/arm64/kvm/arm.c")
_guest_c = partial(Promise, document="arch/arm64/kvm/guest.c")
_series = partial(
    Promise, document="[PATCH v4 00/25] KVM: arm64: SVE guest support", section="known issues"
)
_arm = partial(Promise, document="Arm ARM DDI 0487")

# The capability and KVM_ARM_VCPU_INIT
CAPABILITY = _init("KVM_ARM_VCPU_SVE depends on KVM_CAP_ARM_SVE")
RUN_NEEDS_INIT = _init("before INIT, KVM_RUN fails with ENOEXEC")
ALL_NEED_INIT = _arm_c(
    "undocumented: a vCPU that was not initialised is ENOEXEC", section="kvm_arch_vcpu_ioctl()"
)
UNKNOWN_TARGET = _init("INIT with an unknown target is EINVAL")
UNKNOWN_FEATURE = _init("INIT with an unknown feature is ENOENT")
FEATURE_32BIT = _init(
    "KVM_ARM_VCPU_EL1_32BIT depends on its capability; nothing forbids SVE beside it"
)
INITIAL_SET = _set("INIT sets the best set of vector lengths the host has")
RESET_CORE = _init("INIT resets PC, SP and general registers to 0, PSTATE to EL1h")
RESET_SVE = _init("INIT resets FPSIMD and SVE registers to 0, also after a run")
RESET_SYSREGS = _init("INIT resets system registers as a warm reset would")
SAME_FEATURES = _init("INIT again must name the same target and features, else EINVAL")
AGAIN = _init("INIT may be called again, also after a run, and resets the vCPU")

# KVM_ARM_VCPU_FINALIZE
FINALIZE = _finalize("after INIT with the feature, FINALIZE fixes it")
FINALIZE_TWICE = _finalize("a second FINALIZE of a feature is EPERM")
FINALIZE_ABSENT = _finalize("FINALIZE of an unknown or absent feature is EINVAL")
RUN_NEEDS_FINALIZE = _finalize("KVM_RUN is not available before FINALIZE: EPERM")
RUNS = _finalize("a vCPU is fully usable after FINALIZE")
LIST_NEEDS_FINALIZE = _finalize("KVM_GET_REG_LIST is not available before FINALIZE: EPERM")
REGS_NEED_FINALIZE = _finalize("Z, P and FFR are not accessible before FINALIZE: EPERM")

# KVM_REG_ARM64_SVE_VLS
VLS_READABLE = _init("the set can be read after INIT")
VLS_WRITABLE = _set("the set can be written between INIT and FINALIZE")
VLS_IMMUTABLE = _set("writing the set after FINALIZE is EPERM")
VLS_ENCODING = _set("bit n of eight 64-bit words is the length (n + 1) x 128 bits")
PREFIX_SETS = _set("a set that leaves out just the host's lengths above some value is valid")
INVALID_SET = _set("a set the host cannot give is EINVAL")
FAILED_SET = _guest_c(
    "undocumented: a set that is refused changes nothing", section="set_sve_vls()"
)

# Registers
NEEDS_SVE = _set("SVE registers are only accessible on vCPUs with SVE")
V_REPLACED = _note("V0 to V31 are not accepted on vCPUs with SVE")
V_ACCEPTED = _set("V0 to V31 are core registers")
CORE = _set("the id of a core register has its offset in struct kvm_regs")
SYSREGS = _set("the id of a system register has its encoding")
SLICES = _set("slices at or above the longest length are ENOENT")
SVE_IDS = _set("Zn is 2048 bits, Pn and FFR 256, the set 512, at fixed numbers")
BAD_ID = _set("an invalid register id is EINVAL")
REG_VALUES = _set("a slice of Zn holds its bits 2047:0, one of Pn and FFR 255:0")
FFR_VALUES = _guest_c(
    "undocumented: KVM keeps any value of FFR, even one that no instruction makes",
    section="set_sve_reg()",
)
NO_KVM_REGS = Promise("KVM_GET_REGS and KVM_GET_FPU are not for arm64", _API, "4.11 KVM_GET_REGS")
ID_OPT_OUT = Promise(
    "INIT enables SVE; ID registers show the vCPU's features",
    "Documentation/virt/kvm/arm/vcpu-features.rst",
    "The ID Registers",
)

# KVM_GET_REG_LIST
LISTS = _list("the list has the registers that GET and SET accept")
LIST_TOO_BIG = _list("E2BIG if the array is too small, and n is the needed size")
LIST_ORDER = _guest_c(
    "undocumented: core registers, then the set, then other SVE registers",
    section="kvm_arm_copy_reg_indices()",
)

# The seed series
SEED_NOT_LISTED = _series("slices that are not needed are not enumerated")
SEED_RAZ_WI = _series("slices that are not needed read as zero and ignore writes")
SEED_SLICES = _series("the number of slices is what the longest length needs, rounded up")

# What guests see
PFR0 = _arm("ID_AA64PFR0_EL1.SVE is 1 on a CPU with SVE, 0 without", section="D23.2")
ZFR0 = _arm("ID_AA64ZFR0_EL1 is 0 on a CPU without SVE", section="D23.2")
ZCR_LEN = _arm("ZCR_EL1.LEN is bits 3:0; bits 8:4 read as zero", section="ZCR_EL1")
ZCR_SELECTS = _arm(
    "the length is the longest the CPU has of at most (LEN + 1) x 128 bits", section="ZCR_EL1.LEN"
)
UNDEFINED = _arm("SVE on a CPU without it is UNDEFINED", section="A64 instruction descriptions")
V_IS_LOW_Z = _note("V registers are bits 127:0 of Z registers")

# Several vCPUs
ONE_VM_ONE_SET = _guest_c(
    "undocumented: each vCPU has its own set; KVM does not compare the sets of vCPUs",
    section="set_sve_vls()",
)
ONE_VM_FEATURES = _arm_c(
    "undocumented: all vCPUs of a VM have the same features, except for POWER_OFF",
    section="kvm_vcpu_init_changed()",
)
POWER_OFF = _init("KVM_ARM_VCPU_POWER_OFF starts a vCPU off")

# Intended differences
POWER_OFF_MAY_CHANGE = Known(
    "ok", "since Linux 6.5 POWER_OFF may change (e3c1c0cae31e), which api.rst does not say"
)
FEATURES_MAY_DIFFER = Known("ok", "before Linux 6.5 a VM's vCPUs could differ (2251e9ff1573)")
ZFR0_FIXED = Known("EINVAL", "before Linux 6.7 it could not be changed (f89fbb350dd7)")
TIMERS_AMONG_SYSREGS = "since Linux 6.18 timers are listed among system registers (c3be3a48fb18)"
NEVER_RAZ_WI = Known("ENOENT", "since Linux 5.2, the first with SVE guests (e1c9c98345b3)")
