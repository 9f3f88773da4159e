"""Probes of hosts: valid and invalid files, and differences between KVM and the host."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.arm64 import vl
from pyvmm.errors import UsageError
from pyvmm.svecheck.probe import Probe

FULL = frozenset({128, 256, 384, 512})
HOST = Probe(
    kernel="Linux 6.12.0", machine="Blade 7", emulated=False, midrs=(0x410F_D0C0, 0x410F_D4F0),
    vls=FULL, prctl=FULL, rdvl=FULL,
)  # fmt: skip

lengths = st.frozensets(st.sampled_from(sorted(vl.LENGTHS))).map(
    lambda some: some | {128} if some else some
)
probes = st.builds(
    Probe,
    kernel=st.text(st.characters(categories=["L", "N"])),
    machine=st.text(st.characters(categories=["L", "N"])),
    emulated=st.booleans(),
    midrs=st.tuples(st.integers(0, 0xFFFF_FFFF)),
    vls=lengths,
    prctl=lengths,
    rdvl=lengths,
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory for many files with the same name."""
    return tmp_path_factory.mktemp("scratch")


@given(probe=probes)
def test_probe_is_equal_after_its_document(probe: Probe) -> None:
    document = json.loads(json.dumps(probe.document()))

    assert Probe.of(document, "a") == probe


def test_probe_is_equal_after_its_file(tmp_path: Path) -> None:
    HOST.write(tmp_path / "host.json")

    assert Probe.read(tmp_path / "host.json") == HOST


def test_probe_with_unknown_fields_is_read() -> None:
    document = HOST.document()
    document["sme"] = {"unit": "bits"}
    document["sve"]["since"] = "yesterday"

    assert Probe.of(document, "a") == HOST


@given(data=st.data())
def test_truncated_probe_is_refused(data: st.DataObject, scratch: Path) -> None:
    whole = json.dumps(HOST.document()).encode()
    path = scratch / "cut.json"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])

    with pytest.raises(UsageError) as caught:
        Probe.read(path)

    assert caught.value.message.startswith(f"{path}: ")
    assert "`pyvmm sve list`" in (caught.value.hint or "")


@given(content=st.binary(max_size=64))
def test_file_of_any_bytes_is_refused(content: bytes, scratch: Path) -> None:
    path = scratch / "any"
    path.write_bytes(content)

    with pytest.raises(UsageError, match="any: "):
        Probe.read(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(part=st.sampled_from(["host", "sve"]), value=json_values, data=st.data())
def test_field_with_any_value_is_read_or_refused_by_name(
    part: str, value: object, data: st.DataObject
) -> None:
    document = HOST.document()
    field = data.draw(st.sampled_from(sorted(document[part])))
    document[part][field] = value

    try:
        Probe.of(document, "a.json")
    except UsageError as error:
        assert error.message.startswith("a.json: ")
        assert f"{part}.{field}" in error.message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"9" * 5_000, "not JSON"),
        (b"x" * ((1 << 20) + 1), "too large"),
        (b"[]", "this JSON is not the probe of a host"),
        (b'{"schema": 1, "vms": []}', "this JSON is not the probe of a host"),
        (b'{"format": "pyvmm host probe"', "not JSON, or incomplete"),
    ],
)
def test_file_of_another_kind_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong"
    path.write_bytes(content)

    with pytest.raises(UsageError, match=words) as caught:
        Probe.read(path)

    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["missing", "."])
def test_unreadable_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: "):
        Probe.read(tmp_path / name)


def test_probe_of_a_newer_schema_is_refused_with_a_hint() -> None:
    with pytest.raises(UsageError, match="its schema is 2, this pyvmm reads up to 1") as e:
        Probe.of(HOST.document() | {"schema": 2}, "a")

    assert e.value.hint is not None


def damage(part: str, field: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document[part].update({field: value})


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damage("sve", "kvm", [1, 2, 4]), "128-bit units and would be 128,256,512"),
        (damage("sve", "kvm", [16, 32]), "bytes, as prctl and vlset take them, and would be"),
        (damage("sve", "kvm", [256]), r"the probe is damaged: sve.kvm is \[256\]"),
        (damage("sve", "kvm", [128, 128]), "sve.kvm: 128,128: 128 is given twice"),
        (damage("sve", "kvm", "128,256"), 'the probe is damaged: sve.kvm is "128,256"'),
        (damage("sve", "kvm", [128.0]), r"the probe is damaged: sve.kvm is \[128.0\]"),
        (damage("sve", "rdvl", None), "the probe is damaged: sve.rdvl is null"),
        (damage("host", "kernel", 7), "the probe is damaged: host.kernel is 7"),
        (damage("host", "kernel", "a\x1b[2J"), "the probe is damaged: host.kernel"),
        (damage("host", "midr_el1", ["x"]), "the probe is damaged: host.midr_el1"),
        (damage("host", "midr_el1", ["-0x1"]), "the probe is damaged: host.midr_el1"),
        (damage("host", "midr_el1", ["0x1" + "0" * 16]), "the probe is damaged: host.midr_el1"),
        (damage("host", "emulated", 1), "the probe is damaged: host.emulated is 1"),
        (lambda document: document.pop("sve"), "the probe is damaged: sve.kvm is null"),
        (lambda document: document.update(schema="1"), 'the probe is damaged: schema is "1"'),
        (lambda document: document.update(schema=0), "the probe is damaged: schema is 0"),
        (
            lambda document: document.update(host=["x" * 99] * 9),
            "the probe is damaged: host.kernel",
        ),
    ],
)
def test_damaged_probe_is_refused_by_the_field(
    harm: Callable[[dict[str, Any]], None], words: str
) -> None:
    document = HOST.document()
    harm(document)

    with pytest.raises(UsageError, match=words) as caught:
        Probe.of(document, "a.json")

    assert caught.value.message.startswith("a.json: ")
    assert len(caught.value.message) < 200


def test_probe_without_differences_reports_none() -> None:
    assert [*HOST.differences()] == []


@pytest.mark.parametrize(
    ("changed", "words", "known"),
    [
        ({"vls": frozenset({128, 256})}, "does not offer 384 and 512: it stops below", True),
        ({"vls": frozenset()}, "guests lack it", True),
        ({"vls": frozenset({128, 512})}, "does not offer 256 and 384, though it offers", False),
        ({"vls": FULL | {1024}}, "KVM offers 1024, which the host's programs lack", False),
        ({"rdvl": frozenset({128})}, "RDVL reads 128, but prctl", False),
        ({"prctl": frozenset(), "rdvl": frozenset()}, "KVM offers 128, 256, 384 and 512", False),
    ],
)
def test_differences_are_explained(
    changed: dict[str, frozenset[int]], words: str, known: bool
) -> None:
    (difference,) = HOST.replace(**changed).differences()

    assert words in difference.text
    assert difference.known == known


def test_host_without_sve_has_no_differences() -> None:
    none: frozenset[int] = frozenset()

    assert [*HOST.replace(vls=none, prctl=none, rdvl=none).differences()] == []
