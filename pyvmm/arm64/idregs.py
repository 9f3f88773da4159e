"""The fields of the AArch64 ID registers, which list a CPU's features.

Values have the Linux kernel's names: NI is not implemented, IMP is implemented.
Source: Arm ARM DDI 0487, D23.2; Linux, arch/arm64/tools/sysreg.
"""

from __future__ import annotations

from enum import IntEnum

from pyvmm.arm64.bits import Bits, bit, bits, names


class Implemented(IntEnum):
    """An ID field of a feature without variants."""

    NI = 0
    IMP = 1


class PaRange(IntEnum):
    """ID_AA64MMFR0_EL1.PARange: the physical address size."""

    BITS_32 = 0
    BITS_36 = 1
    BITS_40 = 2
    BITS_42 = 3
    BITS_44 = 4
    BITS_48 = 5
    BITS_52 = 6
    BITS_56 = 7


_EL = names("NI", "IMP", "AARCH32")  # AARCH32: 32-bit code too
_PAUTH = names("NI", "PAuth", "EPAC", "PAuth2", "FPAC", "FPACCOMBINE", "PAuth_LR")
_CSV2 = names("NI", "IMP", "CSV2_2", "CSV2_3")
_PMS = names("NI", "IMP", "V1P1", "V1P2", "V1P3", "V1P4", "V1P5")
_PMU = names("NI", "IMP", V3P1=4, V3P4=5, V3P5=6, V3P7=7, V3P8=8, V3P9=9, IMP_DEF=0xF)
_DEBUG = names(IMP=6, VHE=7, V8P2=8, V8P4=9, V8P8=10, V8P9=11)
_LS64 = names("NI", "LS64", "LS64_V", "LS64_ACCDATA", "LS64WB")
_DIRTY = names("NI", "AF", "DBM", "HAFT", "HDBSS")
_ADERR = names("NI", "DEV_ASYNC", "FEAT_ADERR", "FEAT_ADERR_IND")
_SDERR = names("NI", "DEV_SYNC", "FEAT_ADERR", "FEAT_ADERR_IND")
_ANERR = names("NI", "ASYNC", "FEAT_ANERR", "FEAT_ANERR_IND")
_SNERR = names("NI", "SYNC", "FEAT_ANERR", "FEAT_ANERR_IND")
_EIESB = names("NI", "ToEL3", "ToELx", ANY=0xF)
_STAGE_2 = names("STAGE_1", "NI", "IMP", "BITS_52")  # STAGE_1: the same as in stage 1


class IdAa64Pfr0(Bits, registers="ID_AA64PFR0_EL1"):
    """Processor features."""

    CSV3 = bits(63, 60, "speculative use of faulting data", Implemented)
    CSV2 = bits(59, 56, "speculative use of out of context branch targets", _CSV2)
    RME = bits(55, 52, "Realm Management Extension", Implemented)
    DIT = bits(51, 48, "data independent timing", Implemented)
    AMU = bits(47, 44, "activity monitors", names("NI", "IMP", "V1P1"))
    MPAM = bits(43, 40, "MPAM, major version")
    SEL2 = bits(39, 36, "Secure EL2", Implemented)
    SVE = bits(35, 32, "Scalable Vector Extension", Implemented)
    RAS = bits(31, 28, "RAS extension", names("NI", "IMP", "V1P1", "V2"))
    GIC = bits(27, 24, "GIC system registers", names("NI", "IMP", V4P1=3))
    AdvSIMD = bits(23, 20, "Advanced SIMD", names("IMP", "FP16", NI=0xF))
    FP = bits(19, 16, "floating point", names("IMP", "FP16", NI=0xF))
    EL3 = bits(15, 12, "EL3", _EL)
    EL2 = bits(11, 8, "EL2", _EL)
    EL1 = bits(7, 4, "EL1", _EL)
    EL0 = bits(3, 0, "EL0", _EL)


class IdAa64Pfr1(Bits, registers="ID_AA64PFR1_EL1"):
    """Processor features."""

    PFAR = bits(63, 60, "physical fault address registers", Implemented)
    DF2 = bits(59, 56, "double faults (FEAT_DoubleFault2)", Implemented)
    MTEX = bits(55, 52, "memory tags, canonical and without store", names("NI", "MTE4"))
    THE = bits(51, 48, "translation hardening", Implemented)
    GCS = bits(47, 44, "guarded control stacks", Implemented)
    MTE_frac = bits(43, 40, "asynchronous memory tag faults", names("ASYNC", NI=0xF))
    NMI = bits(39, 36, "non-maskable interrupts", Implemented)
    CSV2_frac = bits(35, 32, "CSV2, minor version", names("NI", "CSV2_1p1", "CSV2_1p2"))
    RNDR_trap = bits(31, 28, "RNDR and RNDRRS can be trapped", Implemented)
    SME = bits(27, 24, "Scalable Matrix Extension", names("NI", "IMP", "SME2"))
    MPAM_frac = bits(19, 16, "MPAM, minor version")
    RAS_frac = bits(15, 12, "RAS, minor version", names("NI", "RASv1p1"))
    MTE = bits(11, 8, "memory tagging", names("NI", "IMP", "MTE2", "MTE3"))
    SSBS = bits(7, 4, "speculative store bypass control", names("NI", "IMP", "SSBS2"))
    BT = bits(3, 0, "branch targets", Implemented)


class IdAa64Pfr2(Bits, registers="ID_AA64PFR2_EL1"):
    """Processor features."""

    FPMR = bits(35, 32, "FPMR", Implemented)
    UINJ = bits(19, 16, "injection of undefined instructions", Implemented)
    GCIE = bits(15, 12, "GICv5 CPU interface", Implemented)
    MTEFAR = bits(11, 8, "FAR of memory tag faults", Implemented)
    MTESTOREONLY = bits(7, 4, "memory tag checks of stores only", Implemented)
    MTEPERM = bits(3, 0, "memory tag permissions", Implemented)


class IdAa64Zfr0(Bits, registers="ID_AA64ZFR0_EL1"):
    """SVE features."""

    F64MM = bits(59, 56, "FP64 matrix multiplication", Implemented)
    F32MM = bits(55, 52, "FP32 matrix multiplication", Implemented)
    F16MM = bits(51, 48, "FP16 matrix multiplication", Implemented)
    I8MM = bits(47, 44, "Int8 matrix multiplication", Implemented)
    SM4 = bits(43, 40, "SM4", Implemented)
    SHA3 = bits(35, 32, "SHA3", Implemented)
    B16B16 = bits(27, 24, "BFloat16 to BFloat16", names("NI", "IMP", "BFSCALE", "B16MM"))
    BF16 = bits(23, 20, "BFloat16", names("NI", "IMP", "EBF16"))
    BitPerm = bits(19, 16, "bit permutation", Implemented)
    EltPerm = bits(15, 12, "element permutation", Implemented)
    AES = bits(7, 4, "AES", names("NI", "IMP", "PMULL128", "AES2"))
    SVEver = bits(3, 0, "SVE version", names("SVE", "SVE2", "SVE2p1", "SVE2p2", "SVE2p3"))


class IdAa64Smfr0(Bits, registers="ID_AA64SMFR0_EL1"):
    """SME features."""

    FA64 = bit(63, "all of A64 in streaming mode", Implemented)
    LUT6 = bit(61, "6-bit table lookup", Implemented)
    LUTv2 = bit(60, "table lookup (FEAT_SME_LUTv2)", Implemented)
    SMEver = bits(59, 56, "SME version", names("SME", "SME2", "SME2p1", "SME2p2", "SME2p3"))
    I16I64 = bits(55, 52, "Int16 to Int64", names("NI", IMP=0xF))
    F64F64 = bit(48, "FP64 to FP64", Implemented)
    I16I32 = bits(47, 44, "Int16 to Int32", names("NI", IMP=5))
    B16B16 = bit(43, "BFloat16 to BFloat16", Implemented)
    F16F16 = bit(42, "FP16 to FP16", Implemented)
    F8F16 = bit(41, "FP8 to FP16", Implemented)
    F8F32 = bit(40, "FP8 to FP32", Implemented)
    I8I32 = bits(39, 36, "Int8 to Int32", names("NI", IMP=0xF))
    F16F32 = bit(35, "FP16 to FP32", Implemented)
    B16F32 = bit(34, "BFloat16 to FP32", Implemented)
    BI32I32 = bit(33, "1 bit to Int32", Implemented)
    F32F32 = bit(32, "FP32 to FP32", Implemented)
    SF8FMA = bit(30, "FP8 multiply-add in streaming mode", Implemented)
    SF8DP4 = bit(29, "FP8 4-way dot product in streaming mode", Implemented)
    SF8DP2 = bit(28, "FP8 2-way dot product in streaming mode", Implemented)
    SBitPerm = bit(25, "bit permutation in streaming mode", Implemented)
    AES = bit(24, "AES in streaming mode", Implemented)
    SFEXPA = bit(23, "FEXPA in streaming mode", Implemented)
    STMOP = bit(16, "structured sparsity outer products", Implemented)
    SMOP4 = bit(0, "quarter-tile outer products", Implemented)


class IdAa64Fpfr0(Bits, registers="ID_AA64FPFR0_EL1"):
    """FP8 features."""

    F8CVT = bit(31, "FP8 conversion", Implemented)
    F8FMA = bit(30, "FP8 multiply-add", Implemented)
    F8DP4 = bit(29, "FP8 4-way dot product", Implemented)
    F8DP2 = bit(28, "FP8 2-way dot product", Implemented)
    F8MM8 = bit(27, "FP8 matrix multiplication, 8-way", Implemented)
    F8MM4 = bit(26, "FP8 matrix multiplication, 4-way", Implemented)
    F16MM2 = bit(15, "FP16 matrix multiplication, 2-way", Implemented)
    F8E4M3 = bit(1, "the E4M3 format", Implemented)
    F8E5M2 = bit(0, "the E5M2 format", Implemented)


class IdAa64Dfr0(Bits, registers="ID_AA64DFR0_EL1"):
    """Debug features."""

    HPMN0 = bits(63, 60, "no event counters for the guest", names("UNPREDICTABLE", "DEF"))
    ExtTrcBuff = bits(59, 56, "external trace buffer", Implemented)
    BRBE = bits(55, 52, "branch record buffer", names("NI", "IMP", "BRBE_V1P1"))
    MTPMU = bits(51, 48, "multi-threaded PMU", names("NI_IMPDEF", "IMP", NI=0xF))
    TraceBuffer = bits(47, 44, "trace buffer", names("NI", "IMP", "TRBE_V1P1"))
    TraceFilt = bits(43, 40, "trace filter", Implemented)
    DoubleLock = bits(39, 36, "OS double lock", names("IMP", NI=0xF))
    PMSVer = bits(35, 32, "statistical profiling", _PMS)
    CTX_CMPs = bits(31, 28, "breakpoints that compare contexts, less one")
    SEBEP = bits(27, 24, "synchronous exceptions by event counters", Implemented)
    WRPs = bits(23, 20, "watchpoints, less one")
    PMSS = bits(19, 16, "PMU snapshots", Implemented)
    BRPs = bits(15, 12, "breakpoints, less one")
    PMUVer = bits(11, 8, "performance monitors", _PMU)
    TraceVer = bits(7, 4, "trace registers", Implemented)
    DebugVer = bits(3, 0, "debug architecture", _DEBUG)


class IdAa64Dfr1(Bits, registers="ID_AA64DFR1_EL1"):
    """Debug features."""

    ABL_CMPs = bits(63, 56, "breakpoints that link to addresses, less one")
    DPFZS = bits(55, 52, "the cycle counter when event counters freeze", names("IGNR", "FRZN"))
    EBEP = bits(51, 48, "exceptions by event counters", Implemented)
    ITE = bits(47, 44, "instrumentation trace", Implemented)
    ABLE = bits(43, 40, "breakpoints that link to addresses", Implemented)
    PMICNTR = bits(39, 36, "instruction counter", Implemented)
    SPMU = bits(35, 32, "system PMUs", names("NI", "IMP", "IMP_SPMZR"))
    CTX_CMPs = bits(31, 24, "breakpoints that compare contexts, less one")
    WRPs = bits(23, 16, "watchpoints, less one")
    BRPs = bits(15, 8, "breakpoints, less one")
    SYSPMUID = bits(7, 0, "system PMU ID")


class IdAa64Dfr2(Bits, registers="ID_AA64DFR2_EL1"):
    """Debug features."""

    TRBE_EXC = bits(27, 24, "trace buffer exceptions", Implemented)
    SPE_nVM = bits(23, 20, "profiling buffer with physical addresses", Implemented)
    SPE_EXC = bits(19, 16, "profiling exceptions", Implemented)
    BWE = bits(7, 4, "breakpoint ranges", names("NI", "FEAT_BWE", "FEAT_BWE2"))
    STEP = bits(3, 0, "enhanced software step", Implemented)


class IdAa64Isar0(Bits, registers="ID_AA64ISAR0_EL1"):
    """Instructions."""

    RNDR = bits(63, 60, "random numbers", Implemented)
    TLB = bits(59, 56, "TLB maintenance", names("NI", "OS", "RANGE"))
    TS = bits(55, 52, "condition flags", names("NI", "FLAGM", "FLAGM2"))
    FHM = bits(51, 48, "FP16 multiplication", names("NI", "IMP", "F16F32DOT", "F16F32MM"))
    DP = bits(47, 44, "dot products", Implemented)
    SM4 = bits(43, 40, "SM4", Implemented)
    SM3 = bits(39, 36, "SM3", Implemented)
    SHA3 = bits(35, 32, "SHA3", Implemented)
    RDM = bits(31, 28, "rounding double multiply-add", Implemented)
    TME = bits(27, 24, "transactional memory", Implemented)
    ATOMIC = bits(23, 20, "atomics", names("NI", IMP=2, FEAT_LSE128=3))
    CRC32 = bits(19, 16, "CRC32", Implemented)
    SHA2 = bits(15, 12, "SHA2", names("NI", "SHA256", "SHA512"))
    SHA1 = bits(11, 8, "SHA1", Implemented)
    AES = bits(7, 4, "AES", names("NI", "AES", "PMULL"))


class IdAa64Isar1(Bits, registers="ID_AA64ISAR1_EL1"):
    """Instructions."""

    LS64 = bits(63, 60, "64-byte loads and stores", _LS64)
    XS = bits(59, 56, "the XS attribute", Implemented)
    I8MM = bits(55, 52, "Int8 matrix multiplication", Implemented)
    DGH = bits(51, 48, "data gathering hint", Implemented)
    BF16 = bits(47, 44, "BFloat16", names("NI", "IMP", "EBF16"))
    SPECRES = bits(43, 40, "prediction invalidation", names("NI", "IMP", "COSP_RCTX"))
    SB = bits(39, 36, "speculation barrier", Implemented)
    FRINTTS = bits(35, 32, "rounding to integers", Implemented)
    GPI = bits(31, 28, "generic authentication, IMPLEMENTATION DEFINED algorithm", Implemented)
    GPA = bits(27, 24, "generic authentication, QARMA5", Implemented)
    LRCPC = bits(23, 20, "load-acquire RCpc", names("NI", "IMP", "LRCPC2", "LRCPC3"))
    FCMA = bits(19, 16, "complex numbers", Implemented)
    JSCVT = bits(15, 12, "JavaScript conversion", Implemented)
    API = bits(11, 8, "address authentication, IMPLEMENTATION DEFINED algorithm", _PAUTH)
    APA = bits(7, 4, "address authentication, QARMA5", _PAUTH)
    DPB = bits(3, 0, "clean to persistence", names("NI", "IMP", "DPB2"))


class IdAa64Isar2(Bits, registers="ID_AA64ISAR2_EL1"):
    """Instructions."""

    ATS1A = bits(63, 60, "address translation without permissions", Implemented)
    LUT = bits(59, 56, "table lookup", names("NI", "IMP", "LUT6"))
    CSSC = bits(55, 52, "common short sequences", names("NI", "IMP", "CMPBR"))
    RPRFM = bits(51, 48, "range prefetch", Implemented)
    PCDPHINT = bits(47, 44, "producer-consumer hints", Implemented)
    PRFMSLC = bits(43, 40, "prefetch to the system cache", Implemented)
    SYSINSTR_128 = bits(39, 36, "128-bit system instructions", Implemented)
    SYSREG_128 = bits(35, 32, "128-bit system registers", Implemented)
    CLRBHB = bits(31, 28, "branch history clearing", Implemented)
    PAC_frac = bits(27, 24, "authentication of constant width", Implemented)
    BC = bits(23, 20, "hinted branches", Implemented)
    MOPS = bits(19, 16, "memory copy and set", Implemented)
    APA3 = bits(15, 12, "address authentication, QARMA3", _PAUTH)
    GPA3 = bits(11, 8, "generic authentication, QARMA3", Implemented)
    RPRES = bits(7, 4, "reciprocals of 12 bits", Implemented)
    WFxT = bits(3, 0, "waits with a timeout", names("NI", IMP=2))


class IdAa64Isar3(Bits, registers="ID_AA64ISAR3_EL1"):
    """Instructions."""

    FPRCVT = bits(31, 28, "FP to integer in one register", Implemented)
    LSUI = bits(27, 24, "unprivileged atomics", Implemented)
    OCCMO = bits(23, 20, "outer cache maintenance", Implemented)
    LSFE = bits(19, 16, "FP atomics", Implemented)
    PACM = bits(15, 12, "PACM", names("NI", "TRIVIAL_IMP", "FULL_IMP"))
    TLBIW = bits(11, 8, "TLB invalidation of writable entries", Implemented)
    FAMINMAX = bits(7, 4, "FP absolute minimum and maximum", Implemented)
    CPA = bits(3, 0, "checked pointer arithmetic", names("NI", "IMP", "CPA2"))


class IdAa64Mmfr0(Bits, registers="ID_AA64MMFR0_EL1"):
    """Memory model features."""

    ECV = bits(63, 60, "enhanced counter virtualization", names("NI", "IMP", "CNTPOFF"))
    FGT = bits(59, 56, "fine-grained traps", names("NI", "IMP", "FGT2"))
    ExS = bits(47, 44, "exceptions that do not synchronize", Implemented)
    TGran4_2 = bits(43, 40, "4 KiB pages in stage 2", _STAGE_2)
    TGran64_2 = bits(39, 36, "64 KiB pages in stage 2", _STAGE_2)
    TGran16_2 = bits(35, 32, "16 KiB pages in stage 2", _STAGE_2)
    TGran4 = bits(31, 28, "4 KiB pages", names("IMP", "BITS_52", NI=0xF))
    TGran64 = bits(27, 24, "64 KiB pages", names("IMP", NI=0xF))
    TGran16 = bits(23, 20, "16 KiB pages", names("NI", "IMP", "BITS_52"))
    BigEndEL0 = bits(19, 16, "both byte orders in EL0", Implemented)
    SNSMem = bits(15, 12, "Secure memory", Implemented)
    BigEnd = bits(11, 8, "both byte orders", Implemented)
    ASIDBits = bits(7, 4, "ASID size", names(BITS_8=0, BITS_16=2))
    PARange = bits(3, 0, "physical address size", PaRange)


class IdAa64Mmfr1(Bits, registers="ID_AA64MMFR1_EL1"):
    """Memory model features."""

    ECBHB = bits(63, 60, "branch history after exceptions", Implemented)
    CMOW = bits(59, 56, "cache maintenance needs write permission", Implemented)
    TIDCP1 = bits(55, 52, "EL0's IMPLEMENTATION DEFINED registers can be trapped", Implemented)
    nTLBPA = bits(51, 48, "no intermediate caching by physical address", Implemented)
    AFP = bits(47, 44, "alternate FP behaviour", Implemented)
    HCX = bits(43, 40, "HCRX_EL2", Implemented)
    ETS = bits(39, 36, "enhanced translation synchronization", names("NI", "IMP", "ETS2", "ETS3"))
    TWED = bits(35, 32, "delayed trapping of WFE", Implemented)
    XNX = bits(31, 28, "execute-never by exception level, in stage 2", Implemented)
    SpecSEI = bits(27, 24, "SErrors by speculative reads", Implemented)
    PAN = bits(23, 20, "privileged access never", names("NI", "IMP", "PAN2", "PAN3"))
    LO = bits(19, 16, "limited ordering regions", Implemented)
    HPDS = bits(15, 12, "hierarchical permission disables", names("NI", "IMP", "HPDS2"))
    VH = bits(11, 8, "Virtualization Host Extensions", Implemented)
    VMIDBits = bits(7, 4, "VMID size", names(BITS_8=0, BITS_16=2))
    HAFDBS = bits(3, 0, "access flag and dirty state by hardware", _DIRTY)


class IdAa64Mmfr2(Bits, registers="ID_AA64MMFR2_EL1"):
    """Memory model features."""

    E0PD = bits(63, 60, "half of the address space can be closed to EL0", Implemented)
    EVT = bits(59, 56, "enhanced virtualization traps", names("NI", "IMP", "TTLBxS"))
    BBM = bits(55, 52, "break-before-make, level")
    TTL = bits(51, 48, "TLB maintenance with a level", Implemented)
    FWB = bits(43, 40, "stage 2 forces write-back", Implemented)
    IDS = bits(39, 36, "EC of trapped ID registers is 0x18", names("NI", "IMP", "EL3"))
    AT = bits(35, 32, "single-copy atomicity of unaligned accesses", Implemented)
    ST = bits(31, 28, "small translation tables", names("BITS_39", "BITS_48_47"))
    NV = bits(27, 24, "nested virtualization", names("NI", "IMP", "NV2"))
    CCIDX = bits(23, 20, "CCSIDR_EL1's format", names("BITS_32", "BITS_64"))
    VARange = bits(19, 16, "virtual address size", names("BITS_48", "BITS_52", "BITS_56"))
    IESB = bits(15, 12, "implicit error synchronization", Implemented)
    LSM = bits(11, 8, "control of load and store multiple", Implemented)
    UAO = bits(7, 4, "user access override", Implemented)
    CnP = bits(3, 0, "common not private translations", Implemented)


class IdAa64Mmfr3(Bits, registers="ID_AA64MMFR3_EL1"):
    """Memory model features."""

    Spec_FPACC = bits(63, 60, "speculation after a failed authentication", Implemented)
    ADERR = bits(59, 56, "asynchronous device read errors", _ADERR)
    SDERR = bits(55, 52, "synchronous device read errors", _SDERR)
    ANERR = bits(47, 44, "asynchronous memory read errors", _ANERR)
    SNERR = bits(43, 40, "synchronous memory read errors", _SNERR)
    D128_2 = bits(39, 36, "128-bit descriptors in stage 2", Implemented)
    D128 = bits(35, 32, "128-bit descriptors", Implemented)
    MEC = bits(31, 28, "memory encryption contexts", Implemented)
    AIE = bits(27, 24, "attribute indexing", Implemented)
    S2POE = bits(23, 20, "permission overlays in stage 2", Implemented)
    S1POE = bits(19, 16, "permission overlays in stage 1", Implemented)
    S2PIE = bits(15, 12, "permission indirection in stage 2", Implemented)
    S1PIE = bits(11, 8, "permission indirection in stage 1", Implemented)
    SCTLRX = bits(7, 4, "SCTLR2_EL1", Implemented)
    TCRX = bits(3, 0, "TCR2_EL1", Implemented)


class IdAa64Mmfr4(Bits, registers="ID_AA64MMFR4_EL1"):
    """Memory model features."""

    SRMASK = bits(47, 44, "masks of system registers", Implemented)
    E3DSE = bits(39, 36, "delegated SErrors from EL3", Implemented)
    RMEGDI = bits(31, 28, "granular data isolation", Implemented)
    E2H0 = bits(27, 24, "HCR_EL2.E2H can be 0", names("IMP", NI_NV1=0xE, NI=0xF))
    NV_frac = bits(23, 20, "nested virtualization, minor", names("NV_NV2", "NV2_ONLY", "NV2P1"))
    FGWTE3 = bits(19, 16, "fine-grained write traps to EL3", Implemented)
    HACDBS = bits(15, 12, "hardware cleaning of dirty state", Implemented)
    ASID2 = bits(11, 8, "two ASIDs", Implemented)
    EIESB = bits(7, 4, "early implicit error synchronization", _EIESB)
    PoPS = bits(3, 0, "point of physical storage", Implemented)
