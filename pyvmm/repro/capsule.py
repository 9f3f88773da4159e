"""A capsule: one file with everything to run a reproduction again, and its result.

It is a ZIP archive, so that ``unzip`` shows what is in it:

    manifest.json      which reproduction, options, seed, host, versions, verdict, evidence, hashes
    files/NAME         the guest and other files that the work needs
    module/NAME.c      the source of the kernel module, if the reproduction has one

A capsule is untrusted input: the manifest, the members' names and their SHA-256 are checked.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pyvmm.base.files import write_whole
from pyvmm.base.records import Record
from pyvmm.errors import UsageError

FORMAT: Final = "pyvmm reproduction"
SCHEMA: Final = 1
MANIFEST: Final = "manifest.json"
LARGEST: Final = 32 << 20  # bytes, of the archive and of each member
MOST: Final = 16  # members
NAME: Final = re.compile(r"(files|module)/[a-z0-9][a-z0-9_.-]{0,60}")
TIME: Final = (1980, 1, 1, 0, 0, 0)  # fixed: equal capsules have equal bytes
# The required fields of a manifest, and their types
FIELDS: Final[dict[str, type]] = {
    "reproduction": str, "options": dict, "seed": int, "host": dict, "machine": str, "pyvmm": str,
    "verdict": str, "exit_code": int, "why": list, "members": dict,
}  # fmt: skip


class Capsule(Record):
    """A capsule in memory: the manifest, and the members by name in the archive."""

    manifest: dict[str, Any]
    members: Mapping[str, bytes]

    def write(self, path: Path) -> None:
        """Write the file completely, or not at all.  Raises: UsageError."""
        hashes = {name: _sha256(data) for name, data in self.members.items()}
        head = {"format": FORMAT, "schema": SCHEMA, **self.manifest, "members": hashes}
        text = json.dumps(head, indent=2).encode() + b"\n"
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
            for name, data in {MANIFEST: text, **self.members}.items():
                info = zipfile.ZipInfo(name, TIME)
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = 0o644 << 16
                out.writestr(info, data)
        write_whole(path, archive.getvalue())

    @classmethod
    def read(cls, path: Path) -> Capsule:
        """Read a file.  Raises: UsageError, if it is damaged or not a capsule."""
        try:
            if path.stat().st_size > LARGEST:
                raise UsageError(f"{path}: too large for a capsule")
            with zipfile.ZipFile(path) as archive:
                members = _members(path, archive)
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
        except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, ValueError,
                RuntimeError, EOFError, zlib.error) as error:  # fmt: skip
            raise _damaged(path, str(error) or type(error).__name__) from error
        if MANIFEST not in members:
            raise _damaged(path, f"it lacks {MANIFEST}")
        manifest = _manifest(path, members.pop(MANIFEST))
        _check_members(path, manifest["members"], members)
        return cls(manifest, members)

    def unpack(self, directory: Path) -> dict[str, Path]:
        """Write the members below a directory, and return their paths by name."""
        paths = {}
        for name, data in self.members.items():
            path = paths[name] = directory / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        return paths


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, bytes]:
    infos = archive.infolist()
    if len(infos) > MOST:
        raise _damaged(path, f"it has {len(infos)} files")
    members: dict[str, bytes] = {}
    for info in infos:
        known = info.filename == MANIFEST or NAME.fullmatch(info.filename)
        if not known or info.filename in members or ".." in info.filename:
            raise _damaged(path, f"it has a file {info.filename!r}")
        with archive.open(info) as member:
            data = member.read(LARGEST + 1)  # the size in the archive is untrusted
        if len(data) > LARGEST:
            raise _damaged(path, f"{info.filename} is too large")
        members[info.filename] = data
    return members


def _manifest(path: Path, data: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"{MANIFEST}: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UsageError(f"{path}: not a capsule", hint="let `pyvmm repro` save one")
    if manifest.get("schema") != SCHEMA:
        raise UsageError(
            f"{path}: its schema is {manifest.get('schema')}, this pyvmm reads {SCHEMA}",
            hint="use the pyvmm that wrote it",
        )
    for name, kind in FIELDS.items():
        if type(manifest.get(name)) is not kind:
            raise _damaged(path, f"{MANIFEST}: {name} is not of type {kind.__name__}")
        if not _is_printable(manifest[name]):  # terminals show it
            raise _damaged(path, f"{MANIFEST}: {name} has unprintable text")
    return manifest


def _is_printable(value: Any) -> bool:
    """Return whether all text in a field is printable; text nested deeper is never shown."""
    if isinstance(value, dict):
        return all(map(_is_printable, (*value.keys(), *value.values())))
    return not isinstance(value, str) or value.isprintable()


def _check_members(path: Path, hashes: dict[str, Any], members: Mapping[str, bytes]) -> None:
    if hashes.keys() != members.keys():
        raise _damaged(path, "its files differ from those in the manifest")
    for name, data in members.items():
        if _sha256(data) != hashes[name]:
            raise _damaged(path, f"{name} differs from its SHA-256 in the manifest")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _damaged(path: Path, reason: str) -> UsageError:
    return UsageError(f"{path}: damaged: {reason}")
