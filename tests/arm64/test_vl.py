"""SVE vector-length sets, against a model of the kernel's own rule."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.arm64 import vl
from tests.arm64.lengths import FULL_512, hosts, kernel_accepts, lengths, sets

EVERY_SET_TO_512 = [
    frozenset(combination)
    for combination in chain.from_iterable(combinations(sorted(FULL_512), n) for n in range(5))
]


@given(asked=sets, host=hosts)
def test_is_legal_agrees_with_the_kernel(asked: frozenset[int], host: frozenset[int]) -> None:
    assert vl.is_legal(asked, host) == kernel_accepts(asked, host)


@given(host=st.sampled_from([s for s in EVERY_SET_TO_512 if 128 in s]))
def test_legal_sets_are_all_that_the_kernel_accepts(host: frozenset[int]) -> None:
    accepted = [asked for asked in EVERY_SET_TO_512 if kernel_accepts(asked, host)]

    assert vl.legal_sets(host) == sorted(accepted, key=len)


@given(host=hosts, limit=lengths)
def test_up_to_is_legal_for_every_limit(host: frozenset[int], limit: int) -> None:
    assert kernel_accepts(vl.up_to(host, limit), host)


@given(asked=sets, host=hosts)
def test_nearest_sets_are_legal_few_and_different(
    asked: frozenset[int], host: frozenset[int]
) -> None:
    near = vl.nearest(asked, host)

    assert 1 <= len(near) <= 3
    assert len(set(near)) == len(near)
    assert all(kernel_accepts(vls, host) for vls in near)


@given(asked=sets, host=hosts)
def test_nearest_to_a_legal_set_is_the_set(asked: frozenset[int], host: frozenset[int]) -> None:
    legal = vl.up_to(host, max(asked, default=128))

    assert vl.nearest(legal, host) == [legal]


@given(vls=sets.filter(bool))
def test_show_and_parse_are_inverse(vls: frozenset[int]) -> None:
    assert vl.parse(vl.show(vls)) == vls


@given(text=st.text(alphabet="0123456789,-x a\u0663", max_size=20))
def test_parse_gives_a_set_of_lengths_or_a_text_error(text: str) -> None:
    try:
        vls = vl.parse(text)
    except vl.TextError as error:
        assert error.exit_code == 2
        assert text in error.message
        assert error.meant <= vl.LENGTHS
    else:
        assert vls
        assert vls <= vl.LENGTHS


@pytest.mark.parametrize("text", ["128,256", "256,128", " 128 , 256 "])
def test_parse_takes_any_order_and_spaces_at_the_commas(text: str) -> None:
    assert vl.parse(text) == {128, 256}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the set is empty"),
        ("  ", "the set is empty"),
        ("0", "0 is not a vector length"),
        ("100", "100 is not a multiple of 128"),
        ("-128", "-128 is negative"),
        ("128,-256", "-256 is negative"),
        ("4096", "4096 is longer than SVE's longest, 2048 bits"),
        ("128,128", "128 is given twice"),
        ("128,128,128", "128 is given repeatedly"),
        ("128,", "a length is missing after the last comma"),
        (",128", "a length is missing at place 1"),
        ("128,,256", "a length is missing at place 2"),
        ("max", "'max' is not a vector length in bits"),
        ("128bit", "'128bit' is not a vector length in bits"),
        ("0x80", "0x80 is hexadecimal; write 128"),
        ("128 256", "'128 256' needs commas"),
        ("0128", "'0128' is not a vector length in bits"),
        ("+128", "'+128' is not a vector length in bits"),
        ("1_28", "'1_28' is not a vector length in bits"),
        ("\u0661\u0662\u0668", "is not a vector length in bits"),
        ("9" * 5000, "is not a vector length in bits"),
    ],
)
def test_parse_refuses_text_that_is_wrong_on_every_host(text: str, words: str) -> None:
    with pytest.raises(vl.TextError) as caught:
        vl.parse(text)

    assert words in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "unit", "in_bits"),
    [
        ("1,2", "kvmtool's old 128-bit units", "--sve-vls=128,256"),
        ("4", "kvmtool's old 128-bit units", "--sve-vls=512"),
        ("16", "kvmtool's old 128-bit units", "--sve-vls=2048"),
        ("16", "bytes, as prctl and vlset take them", "--sve-vls=128"),
        ("16,32", "bytes, as prctl and vlset take them", "--sve-vls=128,256"),
        ("64", "bytes, as prctl and vlset take them", "--sve-vls=512"),
        ("16,256", "bytes, as prctl and vlset take them", "--sve-vls=128,2048"),
    ],
)
def test_parse_recognizes_other_units(text: str, unit: str, in_bits: str) -> None:
    with pytest.raises(vl.TextError) as caught:
        vl.parse(text, subject="--sve-vls")

    assert unit in caught.value.message
    assert in_bits in caught.value.message


@pytest.mark.parametrize("text", ["128,1", "128,192", "128,100", "3,20"])
def test_parse_does_not_guess_a_unit_that_does_not_fit(text: str) -> None:
    with pytest.raises(vl.TextError, match="is not a multiple of 128"):
        vl.parse(text)


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("1,2", "--sve-vls=128,256"),
        ("16,32", "--sve-vls=128,256"),
        ("", "--sve-vls=128 or --sve-vls=128,256,384,512"),
        ("4096", "--sve-vls=128,256,384,512"),
        ("16", "--sve-vls=128 or --sve-vls=128,256,384,512"),
        ("128,", "--sve-vls=128"),
    ],
)
def test_text_error_on_a_host_names_sets_that_it_can_give(text: str, choices: str) -> None:
    with pytest.raises(vl.TextError) as caught:
        vl.parse(text, subject="--sve-vls")

    error = caught.value.on(FULL_512)

    assert error.hint == f"this host (which has 128,256,384,512) can give {choices}"


def test_text_error_on_a_host_without_sve_says_so() -> None:
    error = vl.TextError("--sve-vls", "x", "wrong", list_subject="--sve-vls").on(frozenset())

    assert error.hint is not None
    assert "no SVE" in error.hint


def test_parse_max_takes_one_length() -> None:
    assert vl.parse_max("384") == 384


@pytest.mark.parametrize(
    ("text", "words"),
    [("128,256", "takes one length"), ("2", "--sve-max-vl=256"), ("64", "--sve-max-vl=512")],
)
def test_parse_max_names_its_own_option_in_errors(text: str, words: str) -> None:
    with pytest.raises(vl.TextError) as caught:
        vl.parse_max(text, subject="--sve-max-vl", list_subject="--sve-vls")

    assert caught.value.message.startswith(f"--sve-max-vl={text}: ")
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("lens", "bits"),
    [
        ((0,), 128),
        ((1,), 256),
        ((2,), 256),
        ((3,), 512),
        ((15,), 512),
        ((15, 1), 256),
        ((0, 3), 128),
    ],
)
def test_current_length_is_the_longest_within_every_len(lens: tuple[int, ...], bits: int) -> None:
    assert vl.current(frozenset({128, 256, 512}), *lens) == bits


@pytest.mark.parametrize(
    ("registers", "bits"),
    [
        ({}, 512),
        ({"ZCR_EL1": 1, "PSTATE": 0x3C5}, 256),
        ({"ZCR_EL1": 3, "ZCR_EL2": 1, "PSTATE": 0x3C5}, 256),
        ({"ZCR_EL1": 0, "ZCR_EL2": 1, "PSTATE": 0x3C9}, 256),  # in EL2
    ],
)
def test_length_in_use_depends_on_the_exception_level(registers: dict[str, int], bits: int) -> None:
    assert vl.in_use(FULL_512, registers) == bits


@given(host=hosts)
def test_length_by_len_is_the_longest_within_it(host: frozenset[int]) -> None:
    by_len = vl.by_len(host)

    assert len(by_len) == 16
    for len_, bits in enumerate(by_len):
        assert bits in host
        assert not [longer for longer in host if bits < longer <= (len_ + 1) * 128]


@given(first=hosts, second=hosts)
def test_sets_of_two_hosts_are_those_that_both_kernels_accept(
    first: frozenset[int], second: frozenset[int]
) -> None:
    common = vl.legal_sets(first, second)

    assert common == sorted(common, key=len)
    assert frozenset({128}) in common
    for vls in {*vl.legal_sets(first), *vl.legal_sets(second)}:
        assert (vls in common) == (kernel_accepts(vls, first) and kernel_accepts(vls, second))


def test_host_without_sve_refuses_every_set() -> None:
    assert vl.why_not(frozenset({128}), frozenset()) == "the host has no SVE"
    assert vl.legal_sets(FULL_512, frozenset()) == []


def test_parse_without_a_subject_names_the_set_alone() -> None:
    with pytest.raises(vl.TextError) as caught:
        vl.parse("16,32")

    assert caught.value.message == (
        "16,32: lengths are in bits; these look like bytes, as prctl and vlset take them, "
        "and would be 128,256"
    )
