"""CPU models as files: untrusted JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.cpumodel.fit import Fit, fit
from pyvmm.cpumodel.host import read_host
from pyvmm.cpumodel.model import CpuModel, parse_field, read_model
from pyvmm.errors import UsageError
from tests.cpumodel.hosts import NEW, OLD, document, host, without

MODEL = CpuModel(
    fields={"ID_AA64ISAR0_EL1.SHA2": 1, "MIDR_EL1.PartNum": 0xD40},
    vls=frozenset({128, 256}),
    pauth=False,
    hosts=("a.json",),
)


def written(path: Path, document: object) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_model_survives_its_file(tmp_path: Path) -> None:
    assert read_model(written(tmp_path / "m", MODEL.document())) == MODEL


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "x"}, "not a CPU model"),
        ({"schema": 9}, "its schema is 9, this pyvmm reads up to 1"),
        ({"fields": {"ID_AA64ISAR0_EL1.NOPE": 1}}, "has no field NOPE"),
        ({"fields": {"SCTLR_EL1.M": 1}}, "not a register that identifies a CPU"),
        ({"fields": {"ID_AA64PFR0_EL1.SVE": 1}}, "by the VM's features"),
        ({"fields": {"ID_AA64ISAR0_EL1.SHA2": 16}}, "the field holds 0 to 0xf"),
        ({"fields": {"ID_AA64ISAR0_EL1.SHA2": -1}}, "the field holds 0 to 0xf"),
        ({"fields": {"ID_AA64ISAR0_EL1.SHA2": "1"}}, "not names with numbers"),
        ({"fields": {"ID_AA64ISAR0_EL1.SHA2": True}}, "not names with numbers"),
        ({"fields": []}, "not names with numbers"),
        ({"fields": None}, "not names with numbers"),
        ({"sve_vls": [16]}, "sve_vls"),
        ({"sve_vls": "128"}, "not a list of numbers"),
        ({"pauth": 1}, "neither true nor false"),
        ({"hosts": "a"}, "not a list of names"),
    ],
)
def test_damaged_model_is_refused_with_the_reason(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "m", MODEL.document() | change)

    with pytest.raises(UsageError) as refused:
        read_model(path)

    assert refused.value.message.startswith(str(path))
    assert words in refused.value.message


@pytest.mark.parametrize("text", ["", "[", "[]", "null", '"x"', "{}", "[" * 100_000, "\0"])
def test_file_that_is_no_model_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a CPU model"):
        read_model(written(tmp_path / "m", text))


def test_missing_file_is_refused_with_the_kernels_reason(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory"):
        read_model(tmp_path / "none")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["fields", "hosts", "sve_vls", "pauth", "schema"]),
                       json_values))  # fmt: skip
def test_any_json_is_a_model_or_refused(change: dict[str, Any]) -> None:
    path = Path("/dev/shm") / "pyvmm-test-model"
    try:
        read_model(written(path, MODEL.document() | change))
    except UsageError:
        pass
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("ID_AA64ISAR0_EL1.SHA2=1", 1),
        ("ID_AA64ISAR0_EL1.SHA2=0x2", 2),
        ("ID_AA64ISAR0_EL1.SHA2=SHA512", 2),
        ("ID_AA64PFR0_EL1.FP=NI", 0xF),
    ],
)
def test_field_takes_a_number_or_a_name(text: str, value: int) -> None:
    assert parse_field(text) == (text.partition("=")[0], value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ID_AA64ISAR0_EL1.SHA2", "not REGISTER.FIELD=VALUE"),
        ("ID_AA64ISAR0_EL1.SHA2=", "a value of ID_AA64ISAR0_EL1.SHA2"),
        ("ID_AA64ISAR0_EL1.SHA2=many", "a value of ID_AA64ISAR0_EL1.SHA2"),
        ("ID_AA64ISAR0_EL1=1", "has no field"),
        ("=1", "not a register"),
        ("ID_AA64PFR1_EL1.MTE=0", "by the VM's features"),
    ],
)
def test_malformed_field_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_field(text)


def test_fit_tells_what_a_host_lacks_and_what_kvm_cannot_change() -> None:
    model = CpuModel(
        fields={
            "ID_AA64ISAR0_EL1.SHA2": 1,
            "ID_AA64ISAR0_EL1.RNDR": 1,
            "ID_AA64ISAR0_EL1.AES": 1,
            "ID_AA64ISAR1_EL1.DPB": 0,
        },
        vls=frozenset({128, 512}),
        pauth=True,
    )
    limited = host(NEW, writable=without("ID_AA64ISAR0_EL1", "AES"))

    found = {part.name: part.fit for part in fit(model, limited)}

    assert found == {
        "ID_AA64ISAR0_EL1.SHA2": Fit.CHANGED,
        "ID_AA64ISAR0_EL1.RNDR": Fit.LACKS,
        "ID_AA64ISAR0_EL1.AES": Fit.FIXED,
        "ID_AA64ISAR1_EL1.DPB": Fit.SAME,
        "SVE vector lengths": Fit.LACKS,
        "pointer authentication": Fit.LACKS,
    }


def test_host_survives_its_file(tmp_path: Path) -> None:
    here = host(OLD, pauth="")

    assert read_host(written(tmp_path / "h", document(here))) == here


@pytest.mark.parametrize("part", ["kvm", "registers", "writable_id_bits"])
def test_host_of_an_older_pyvmm_is_refused(part: str, tmp_path: Path) -> None:
    older = document(host(OLD))
    del older[part]

    with pytest.raises(UsageError, match="not the JSON that `pyvmm doctor` prints") as refused:
        read_host(written(tmp_path / "h", older))

    assert refused.value.hint == "use what `pyvmm doctor` prints on that host as JSON"
