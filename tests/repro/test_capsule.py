"""Capsules: valid ones are read, and others are refused."""

from __future__ import annotations

import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pyvmm.errors import UsageError
from pyvmm.repro import capsule as module
from pyvmm.repro.capsule import Capsule

MANIFEST: dict[str, Any] = {
    "reproduction": "zcr-el12", "options": {"zcr": "0-15"}, "seed": 1, "host": {"kernel": "6.1"},
    "machine": "emulated: QEMU 7.2", "pyvmm": "0.1", "verdict": "REPRODUCED", "exit_code": 1,
    "why": ["so it is"],
}  # fmt: skip
MEMBERS = {"files/guest": b"\x7fELF guest", "module/zcr_el12.c": b"/* C */"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "case.zip"
    Capsule(MANIFEST, MEMBERS).write(path)
    return path


def rewritten(path: Path, **changed: bytes | None) -> Path:
    """Change, add or (None) remove members of an archive."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    wanted = {**members, **changed}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in wanted.items():
            if data is not None:
                archive.writestr(name, data)
    return path


def manifest_with(path: Path, **changed: Any) -> Path:
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    return rewritten(path, **{"manifest.json": json.dumps(manifest | changed).encode()})


def test_capsule_is_equal_after_write_and_read(path: Path) -> None:
    found = Capsule.read(path)

    assert found.members == MEMBERS
    assert {name: found.manifest[name] for name in MANIFEST} == MANIFEST


def test_equal_capsules_are_equal_files(path: Path, tmp_path: Path) -> None:
    Capsule(MANIFEST, MEMBERS).write(tmp_path / "again.zip")

    assert (tmp_path / "again.zip").read_bytes() == path.read_bytes()


def test_unpack_writes_members_below_the_directory(path: Path, tmp_path: Path) -> None:
    paths = Capsule.read(path).unpack(tmp_path / ".")

    assert {name: p.read_bytes() for name, p in paths.items()} == MEMBERS
    assert all(p.is_relative_to(tmp_path) for p in paths.values())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"files/guest": b"another"}, "files/guest differs from its SHA-256 in the manifest"),
        ({"files/guest": None}, "its files differ from those in the manifest"),
        ({"files/more": b""}, "its files differ from those in the manifest"),
        ({"files/../../evil": b""}, "it has a file 'files/../../evil'"),
        ({"/etc/passwd": b""}, "it has a file '/etc/passwd'"),
        ({"files/a/b": b""}, "it has a file 'files/a/b'"),
        ({"manifest.json": None}, "it lacks manifest.json"),
        ({"manifest.json": b"{"}, "manifest.json: "),
        ({"manifest.json": b"[" * 100_000}, "manifest.json: "),
        ({"manifest.json": b"[]"}, "not a capsule"),
        ({f"files/n{n}": b"" for n in range(20)}, "files"),
    ],
)
def test_read_refuses_an_invalid_archive(
    changed: dict[str, bytes | None], words: str, path: Path
) -> None:
    with pytest.raises(UsageError, match="case") as caught:
        Capsule.read(rewritten(path, **changed))

    assert words in caught.value.message


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"schema": 2}, "schema is 2, this pyvmm reads 1"),
        ({"seed": "1"}, "seed is not of type int"),
        ({"seed": True}, "seed is not of type int"),
        ({"options": []}, "options is not of type dict"),
        ({"verdict": None}, "verdict is not of type str"),
        ({"format": "tar"}, "not a capsule"),
        ({"verdict": "\x1b[2J"}, "verdict has unprintable text"),
        ({"options": {"zcr": "\x1b[2J"}}, "options has unprintable text"),
        ({"host": {"cpu": "a\nb"}}, "host has unprintable text"),
    ],
)
def test_read_refuses_an_invalid_manifest(changed: dict[str, Any], words: str, path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Capsule.read(manifest_with(path, **changed))

    assert words in caught.value.message


def test_read_refuses_a_member_that_is_too_large(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("files/guest", bytes(module.LARGEST + 1))
    path.write_bytes(bomb.getvalue())

    with pytest.raises(UsageError, match="files/guest is too large"):
        Capsule.read(path)

    monkeypatch.setattr(module, "LARGEST", 10)
    with pytest.raises(UsageError, match="too large for a capsule"):
        Capsule.read(path)


def test_read_refuses_or_survives_any_damage(path: Path) -> None:
    whole = path.read_bytes()
    chance = random.Random(1)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data[: chance.choice((len(data), chance.randrange(len(data))))])

        try:
            found = Capsule.read(path)
        except UsageError:
            continue
        assert found.members == MEMBERS  # damage to unused bytes, for example a date


@pytest.mark.parametrize("missing", ["nowhere.zip", "."])
def test_read_refuses_a_missing_file(missing: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Capsule.read(tmp_path / missing)
