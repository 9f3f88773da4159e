"""``pyvmm cpu``: listing, explaining and combining hosts' CPUs, from saved descriptions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyvmm.cli import main
from pyvmm.cpumodel.host import CpuHost
from pyvmm.cpumodel.model import read_model
from tests.cpumodel.hosts import NEW, OLD, document, host, without


@pytest.fixture
def fleet(tmp_path: Path) -> dict[str, Path]:
    hosts = {"old": host(OLD), "new": host(NEW, pauth="QARMA5 PAuth2")}
    return {name: save(tmp_path / f"{name}.json", one) for name, one in hosts.items()}


def save(path: Path, one: CpuHost) -> Path:
    path.write_text(json.dumps(document(one)))
    return path


Said = pytest.CaptureFixture[str]


def typed(said: Said, *words: object) -> tuple[int, str, str]:
    """Type a `pyvmm cpu` command; return the exit code, stdout and stderr."""
    code = main(["cpu", *map(str, words)])
    return code, *said.readouterr()


def test_common_prints_a_model_and_what_hosts_lose(
    fleet: dict[str, Path], tmp_path: Path, capsys: Said
) -> None:
    code, out, err = typed(capsys, "common", *fleet.values())

    assert code == 0
    (tmp_path / "fleet.json").write_text(out)
    model = read_model(tmp_path / "fleet.json")
    assert model.fields["ID_AA64ISAR0_EL1.SHA2"] == 1
    assert model.pauth is False
    assert f"{fleet['new']} loses" in err
    assert "ID_AA64ISAR0_EL1.SHA2" in err
    assert "2 (SHA512) becomes 1 (SHA256)" in err


def test_common_fails_if_kvm_cannot_change_a_field(
    fleet: dict[str, Path], tmp_path: Path, capsys: Said
) -> None:
    fixed = save(tmp_path / "fixed.json", host(NEW, writable=without("ID_AA64ISAR0_EL1", "SHA2")))

    code, _, err = typed(capsys, "common", fleet["old"], fixed)

    assert code == 1
    assert "no guest can move, because:" in err
    assert f"KVM of {fixed} cannot change it" in err


def test_each_host_gives_the_common_model(
    fleet: dict[str, Path], tmp_path: Path, capsys: Said
) -> None:
    (tmp_path / "fleet.json").write_text(typed(capsys, "common", *fleet.values())[1])
    on = [word for path in fleet.values() for word in ("--on", path)]

    code, out, _ = typed(capsys, "explain", tmp_path / "fleet.json", *on)

    assert code == 0
    assert out.count("the CPU can be given") == 2


def test_explain_fails_where_a_host_has_less(fleet: dict[str, Path], capsys: Said) -> None:
    code, out, _ = typed(
        capsys, "explain", "ID_AA64ISAR0_EL1.SHA2=SHA512", "--on", fleet["old"], "--json"
    )

    assert code == 1
    (one,) = json.loads(out)["hosts"]
    assert not one["given"]
    assert one["parts"] == [
        {"name": "ID_AA64ISAR0_EL1.SHA2", "fit": "lacks", "has": "1 (SHA256)",
         "asked": "2 (SHA512)"}
    ]  # fmt: skip


def test_list_shows_values_and_what_a_guest_can_be_given(
    fleet: dict[str, Path], capsys: Said
) -> None:
    code, out, _ = typed(capsys, "list", "--on", fleet["new"])

    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("ID_AA64ISAR0_EL1.SHA2 ")]
    assert line.split() == ["ID_AA64ISAR0_EL1.SHA2", "2", "(SHA512)", "0", "to", "1", "SHA2"]
    assert "pointer authentication  QARMA5" in out


def test_list_has_every_field_as_json(fleet: dict[str, Path], capsys: Said) -> None:
    _, out, _ = typed(capsys, "list", "--on", fleet["old"], "--json")

    found = {field["name"]: field for field in json.loads(out)["fields"]}
    assert found["ID_AA64PFR0_EL1.SVE"]["by_feature"]
    assert found["ID_AA64ISAR0_EL1.AES"] == {
        "name": "ID_AA64ISAR0_EL1.AES", "value": 2, "word": "PMULL", "meaning": "AES",
        "writable": True, "by_feature": False, "rule": "LOWER",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["common", "none.json"], "none.json: cannot be read: No such file"),
        (["common", "old", "old"], "the host is given twice"),
        (["explain", "old", "--on", "old"], "not a CPU model"),
        (["explain", "ID_AA64ISAR0_EL1.NOPE=1", "--on", "old"], "has no field NOPE"),
        (["explain", "a", "b", "--on", "old"], "one model at a time"),
        (["list", "--on", "Makefile"], "not the JSON that `pyvmm doctor` prints"),
    ],
)
def test_bad_input_is_refused(
    words: list[str], said: str, fleet: dict[str, Path], capsys: Said
) -> None:
    code, _, err = typed(capsys, *(fleet.get(word, word) for word in words))

    assert code == 2
    assert said in err
    assert "Traceback" not in err
