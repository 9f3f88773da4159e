"""Capsules of reproductions: the archive as raw bytes, or with right hashes.

The input is a raw archive if it begins with "PK"; else the manifest's JSON, SEPARATOR, then files.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator

from fuzz.jsonmutator import mutated
from fuzz.snapshots import scratch
from pyvmm.errors import VmmError
from pyvmm.host.settings import HostSettings
from pyvmm.repro import cases, replay
from pyvmm.repro.capsule import FORMAT, MANIFEST, Capsule

SEPARATOR = b"\xff\xfe"
CASES = cases.all_cases()  # imported here: the time of the first input is limited


def check(data: bytes) -> None:
    """Read the capsule, and prepare to run it again, or refuse it."""
    path = scratch() / "it.capsule"
    path.write_bytes(data if data.startswith(b"PK") else _archive(data))
    try:
        capsule = Capsule.read(path)
        where = replay.host_of(capsule, {})
        with replay.unpacked(capsule, where, trust=False) as job:
            assert isinstance(job.where, HostSettings)
    except VmmError as error:
        assert error.message


def _archive(data: bytes) -> bytes:
    manifest, *files = data.split(SEPARATOR)
    names = [f"files/f{number}" for number in range(len(files))]
    try:
        head = json.loads(manifest)
        head["members"] |= {
            name: hashlib.sha256(file).hexdigest() for name, file in zip(names, files, strict=True)
        }
        manifest = json.dumps(head).encode()
    except (ValueError, TypeError, LookupError, RecursionError):
        pass
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in zip((MANIFEST, *names), (manifest, *files), strict=True):
            archive.writestr(name, content)
    return out.getvalue()


def mutate(data: bytes, most: int, seed: int) -> bytes | None:
    """Change the manifest."""
    first, separator, rest = data.partition(SEPARATOR)
    changed = mutated(first, most - len(separator) - len(rest), seed)
    return None if changed is None else changed + separator + rest


def seeds() -> Iterator[bytes]:
    """Yield a capsule of each reproduction, and an archive."""
    manifest = {
        "format": FORMAT, "schema": 1, "options": {}, "seed": 1, "machine": "emulated",
        "host": {"kernel": "6.1", "qemu": "7.2", "cpu": "max", "append": ""}, "pyvmm": "0.1.0",
        "verdict": "fine", "exit_code": 0, "why": ["it is"], "members": {},
    }  # fmt: skip
    for reproduction in CASES:
        text = json.dumps({**manifest, "reproduction": reproduction}, separators=(",", ":"))
        yield text.encode()
        yield text.encode() + SEPARATOR + b"\x7fELF"
    yield _archive(text.encode() + SEPARATOR + b"x")
