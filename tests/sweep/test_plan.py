"""The runs of a sweep."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.arm64 import vl
from pyvmm.commands.sweep._line import command
from pyvmm.errors import HostError, ImageError, UsageError
from pyvmm.host.settings import HostSettings
from pyvmm.sweep.plan import (
    Guest,
    Run,
    alternatives,
    parse_cpus,
    parse_sets,
    plan,
    sets_of,
)

HERE = HostSettings()
ELSEWHERE = HostSettings(cpu="max,sve384=off")
POWERS = frozenset({128, 256, 512})
GUEST = Guest(image="hello")
HOSTS = st.frozensets(st.sampled_from(sorted(vl.LENGTHS)), max_size=16).map(
    lambda vls: vls | {vl.QUADWORD}
)


def run(**fields: Any) -> Run:
    return Run(**{"number": 1, "guest": GUEST, "vls": POWERS, "where": HERE, **fields})


@given(HOSTS)
def test_all_stands_for_every_set_that_the_host_can_give(host: frozenset[int]) -> None:
    sets = sets_of([None], host, HERE)

    assert len(sets) == len(host)
    assert all(vl.is_legal(vls, host) for vls in sets)


@given(
    st.lists(HOSTS, min_size=1, max_size=3),
    st.lists(st.integers(1, 512), min_size=1, max_size=3, unique=True),
)
def test_plan_has_every_combination_once(hosts: list[frozenset[int]], cpus: list[int]) -> None:
    lengths = {HostSettings(cpu=f"cpu{at}"): host for at, host in enumerate(hosts)}

    runs = plan(GUEST, [None, vl.NO_SVE], cpus, lengths, command)

    assert len(runs) == len(cpus) * sum(len(host) + 1 for host in hosts)
    assert [run.number for run in runs] == [*range(1, len(runs) + 1)]
    assert len({run.name for run in runs}) == len(runs)
    assert len({run.log_name for run in runs}) == len(runs)


def test_runs_of_a_host_are_consecutive() -> None:
    runs = plan(GUEST, [None], [1, 2], {HERE: POWERS, ELSEWHERE: POWERS}, command)

    assert [run.where for run in runs] == [HERE] * 6 + [ELSEWHERE] * 6


@pytest.mark.parametrize(
    ("texts", "sets"),
    [
        (["all"], [None]),
        (["128;128,256"], [frozenset({128}), frozenset({128, 256})]),
        (["none", "128 ; 256,128"], [frozenset(), frozenset({128}), frozenset({128, 256})]),
        (["128", "128;all"], [frozenset({128}), None]),
    ],
)
def test_parse_sets_reads_repeated_and_listed_sets(
    texts: list[str], sets: list[vl.VlSet | None]
) -> None:
    assert parse_sets(texts) == sets


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "`sets` is missing"),
        ([""], "a value is empty"),
        (["128;"], "a value is empty"),
        (["1,2"], "`sets`=1,2: lengths are in bits; these look like"),
        (["every"], "'every' is not a vector length"),
    ],
)
def test_parse_sets_refuses_invalid_sets(texts: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_sets(texts)


def test_set_a_host_cannot_give_is_refused_with_those_it_can() -> None:
    with pytest.raises(HostError, match=r"and 256 is left out \(kernel=") as caught:
        sets_of([frozenset({128, 512})], POWERS, HERE)

    assert "can give `sets`=128 or `sets`=128,256,512" in str(caught.value.hint)


def test_all_is_refused_on_a_host_without_sve() -> None:
    with pytest.raises(HostError, match="has no SVE"):
        sets_of([None], vl.NO_SVE, HERE)

    assert sets_of([vl.NO_SVE], vl.NO_SVE, HERE) == [vl.NO_SVE]


def test_set_that_is_given_twice_is_run_once() -> None:
    assert sets_of([frozenset({128}), None], POWERS, HERE) == vl.legal_sets(POWERS)


def test_parse_cpus_reads_repeated_and_listed_numbers() -> None:
    assert parse_cpus([]) == [None]
    assert parse_cpus(["1,2", "4;2"]) == [1, 2, 4]


@pytest.mark.parametrize("text", ["0", "-1", "two", "1,", "1 2"])
def test_parse_cpus_refuses_invalid_numbers(text: str) -> None:
    with pytest.raises(UsageError, match="`cpus`"):
        parse_cpus([text])


def test_comma_in_a_cpus_name_separates_no_values() -> None:
    assert alternatives(["max,sve=off;max", "max"], "`host.cpu`") == ["max,sve=off", "max"]


def test_longest_log_name_fits_a_file_name() -> None:
    where = HostSettings(cpu="max," + ",".join(f"sve{length}=on" for length in vl.LENGTHS))

    assert len(run(vls=vl.LENGTHS, where=where).log_name) <= 255


def test_log_name_has_no_slash() -> None:
    assert "/" not in run(where=HostSettings(cpu="../../etc")).log_name


def test_run_can_be_pickled_with_its_files(tmp_path: Path) -> None:
    image, initrd = tmp_path / "image", tmp_path / "initrd"
    image.write_bytes(b"1")
    initrd.write_bytes(b"2")

    packed = run(guest=Guest(image="image", initrd=str(initrd)).packed(image))

    assert pickle.loads(pickle.dumps(packed)) == packed
    assert packed.guest.files == (("image", b"1"), ("initrd", b"2"))


def test_packing_a_missing_image_is_an_image_error() -> None:
    with pytest.raises(ImageError, match="/nowhere: cannot be read: No such file"):
        GUEST.packed(Path("/nowhere"))
