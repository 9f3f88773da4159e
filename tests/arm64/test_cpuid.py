from __future__ import annotations

from pyvmm.arm64.cpuid import Ccsidr, Ctr, Dczid, Implementer, Midr, line_bytes


def test_midr_decodes_maker_and_part() -> None:
    neoverse_n1 = Midr(0x413F_D0C1)

    assert neoverse_n1.Implementer is Implementer.ARM
    assert (neoverse_n1.PartNum, neoverse_n1.Variant, neoverse_n1.Revision) == (0xD0C, 3, 1)


def test_line_bytes_returns_64_for_a_cortex_a57() -> None:
    ctr = Ctr(0x8444_C004)

    sizes = [line_bytes(field) for field in (ctr.DminLine, ctr.IminLine, ctr.ERG, Dczid(4).BS)]

    assert sizes == [64, 64, 64, 64]


def test_ccsidr_describes_the_32_kib_data_cache_of_a_cortex_a57() -> None:
    l1d = Ccsidr(0x701F_E00A)

    size = (l1d.NumSets + 1) * (l1d.Associativity + 1) << l1d.LineSize + 4

    assert size == 32 * 1024
