"""Replays of capsules: trust in their programs, their host, and their verdict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.errors import UsageError
from pyvmm.host.settings import HostSettings
from pyvmm.repro import cases
from pyvmm.repro.capsule import Capsule
from pyvmm.repro.cases import find
from pyvmm.repro.model import Reproduction
from pyvmm.repro.replay import compare, host_of, pack, unpacked
from pyvmm.repro.runner import LOST, Job, ReproResult
from tests.repro.rows import evidence, following

ZCR = find("zcr-el12")
BUG = following({0: 16, 1: 32, 15: 64})


@pytest.fixture
def reproduction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reproduction:
    """Return zcr-el12 with files that need no build."""
    programs = {name: tmp_path / name for name in ZCR.files}
    for name, path in programs.items():
        path.write_text(f"our {name}")
    made = ZCR.replace(files=programs)
    monkeypatch.setattr(Reproduction, "is_guest", lambda self, name: name == "guest")
    monkeypatch.setattr(cases, "find", lambda name: made)
    return made


@pytest.fixture
def capsule(reproduction: Reproduction, tmp_path: Path) -> Callable[..., Capsule]:
    """Return a function that makes a capsule with changed members."""

    def make(**changed: str) -> Capsule:
        texts = {"zcr": "0,1,15", "hack": None}
        job = Job(
            reproduction=reproduction,
            settings=reproduction.read(texts),
            where=HostSettings(qemu="5.2"),
            texts=texts,
            seed=7,
        )
        packed = pack(ReproResult(job=job, evidence=evidence(BUG), machine="emulated: QEMU 5.2.0"))
        members = {f"files/{name}": text.encode() for name, text in changed.items()}
        Capsule(packed.manifest, {**packed.members, **members}).write(tmp_path / "c.zip")
        return Capsule.read(tmp_path / "c.zip")

    return make


Make = Callable[..., Capsule]


def test_replay_runs_the_saved_job(capsule: Make) -> None:
    with unpacked(capsule(), HostSettings(), trust=False) as job:
        assert (job.seed, job.settings["zcr"], job.settings["hack"]) == (7, [0, 1, 15], None)
        assert job.files["guest"].read_text() == "our guest"
        assert job.module is not None and job.module.name == "zcr_el12.c"

    assert not job.files["guest"].exists()


def test_replay_runs_a_foreign_guest_without_trust(capsule: Make) -> None:
    with unpacked(capsule(guest="their guest"), HostSettings(), trust=False) as job:
        assert job.files["guest"].read_text() == "their guest"


def test_replay_refuses_a_foreign_program_without_trust(capsule: Make) -> None:
    theirs = capsule(watcher="their watcher")

    with (
        pytest.raises(UsageError, match=r"foreign programs: files/watcher") as caught,
        unpacked(theirs, HostSettings(), trust=False),
    ):
        pass

    assert "`trust`" in (caught.value.hint or "")
    with unpacked(theirs, HostSettings(), trust=True) as job:
        assert job.files["watcher"].read_text() == "their watcher"


def test_replay_refuses_a_foreign_module_without_trust(capsule: Make) -> None:
    found = capsule()
    theirs = Capsule(found.manifest, {**found.members, "module/zcr_el12.c": b"int evil;"})

    with (
        pytest.raises(UsageError, match="module/zcr_el12"),
        unpacked(theirs, HostSettings(), trust=False),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"zcr": "99"}, "`zcr`=99"),
        ({"zcr": [0]}, r"`zcr`: \[0\] is not text"),
        ({"arm": "perhaps"}, "`arm`=perhaps: not one of auto"),
        ({"control": None}, "`control`: None is not text"),
    ],
)
def test_capsule_options_are_checked_like_typed_ones(
    options: dict[str, object], words: str, capsule: Make
) -> None:
    found = capsule()
    found.manifest["options"] |= options

    with pytest.raises(UsageError, match=words), unpacked(found, HostSettings(), trust=False):
        pass


def test_host_settings_are_the_capsules_unless_given(capsule: Make) -> None:
    found = capsule()

    assert host_of(found, {}) == HostSettings(kind="emulated", qemu="5.2")
    assert host_of(found, {"kernel": "7.2"}).kernel == "7.2"
    found.manifest["host"]["kernel"] = "/home/them/Image"
    with pytest.raises(UsageError, match="a kernel in a file of another machine: /home/them/Image"):
        host_of(found, {})
    assert host_of(found, {"kernel": "6.12"}).kernel == "6.12"
    found.manifest["host"]["cpu"] = 5
    with pytest.raises(UsageError, match=r"host\.cpu is not text"):
        host_of(found, {"kernel": "6.12"})


@pytest.mark.parametrize(
    ("verdict", "code", "words"),
    [
        ("REPRODUCED", 0, "the verdict holds"),
        ("REPRODUCED, CONTENTS LOST", 0, "the verdict holds"),
        ("NOT REPRODUCED", 1, "the verdict does not hold"),
        ("INCONCLUSIVE", 3, "it is unknown"),
    ],
)
def test_replay_compares_verdicts(
    verdict: str, code: int, words: str, reproduction: Reproduction
) -> None:
    codes = {"NOT REPRODUCED": 0, "INCONCLUSIVE": 3}
    lost = {LOST: (verdict, codes.get(verdict, 1), ())}
    job = Job(reproduction=reproduction, settings={}, where=HostSettings())
    now = ReproResult(job=job, evidence=lost, machine="here")

    sentence, got = compare("REPRODUCED", now.finding)

    assert got == code
    assert sentence.startswith(words)
