"""Capsules of reproductions: save a result with its files, run it again, and compare."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pyvmm.errors import EXIT_FAILED, EXIT_HOST, EXIT_OK, UsageError
from pyvmm.host.settings import HostSettings
from pyvmm.repro import cases
from pyvmm.repro.capsule import Capsule
from pyvmm.repro.model import CANNOT_TELL, Finding, Reproduction
from pyvmm.repro.runner import Job, ReproResult

FILES: Final = "files/"
MODULE: Final = "module/"
SEEDS: Final = range(1 << 24)


def pack(result: ReproResult) -> Capsule:
    """Return a capsule with the job's files and its result."""
    job = result.job
    paths = {**job.reproduction.files, **job.files}
    members = {f"{FILES}{name}": path.read_bytes() for name, path in paths.items()}
    if (source := job.module or job.reproduction.module) is not None:
        members[f"{MODULE}{source.name}"] = source.read_bytes()
    return Capsule(result.document(), members)


def compare(then: str, now: Finding) -> tuple[str, int]:
    """Return whether a capsule's verdict holds, as a sentence and an exit code.

    The part after a comma depends on timing and is ignored: contents are lost only if the vector
    length changes during a hold.
    """
    text = f"{then} then, {now.verdict} now"
    if now.verdict.partition(",")[0] == then.partition(",")[0]:
        return f"the verdict holds: {text}", EXIT_OK
    if now.code == CANNOT_TELL:
        return f"it is unknown whether the verdict holds: {text}", EXIT_HOST
    return f"the verdict does not hold: {text}", EXIT_FAILED


@contextlib.contextmanager
def unpacked(capsule: Capsule, where: HostSettings, *, trust: bool) -> Iterator[Job]:
    """Unpack a capsule, and yield its job with the capsule's files.

    Raises: UsageError, if this pyvmm lacks the reproduction, or the capsule has foreign programs
    that the user does not ``trust``.
    """
    reproduction = cases.find(capsule.manifest["reproduction"])
    seed = capsule.manifest["seed"]
    if seed not in SEEDS:
        raise UsageError(f"the capsule's seed {seed} is out of range")
    job = Job.of(reproduction, capsule.manifest["options"], where, seed)
    foreign = list(_foreign(capsule, reproduction))
    if foreign and not trust:
        raise UsageError(
            f"the capsule has foreign programs: {', '.join(foreign)}",
            hint="use `trust` to run them on the host, with access to your files",
        )
    with tempfile.TemporaryDirectory(prefix="pyvmm-capsule-") as scratch:
        paths = capsule.unpack(Path(scratch))
        files = {n.removeprefix(FILES): p for n, p in paths.items() if n.startswith(FILES)}
        module = next((path for name, path in paths.items() if name.startswith(MODULE)), None)
        yield job.replace(files=files, module=module)


def _foreign(capsule: Capsule, reproduction: Reproduction) -> Iterator[str]:
    """Yield the members that would run on the host and differ from this pyvmm's."""
    own: dict[str, Path] = {f"{FILES}{name}": path for name, path in reproduction.files.items()}
    if reproduction.module is not None:
        own[f"{MODULE}{reproduction.module.name}"] = reproduction.module
    for name, data in capsule.members.items():
        if name not in own:
            yield name
            continue
        is_guest = name.startswith(FILES) and reproduction.is_guest(name.removeprefix(FILES))
        if not is_guest and own[name].read_bytes() != data:
            yield name


def host_of(capsule: Capsule, chosen: dict[str, Any]) -> HostSettings:
    """Return the settings of the host of a capsule, with ``chosen`` ones in their place.

    Raises: UsageError, if the capsule's kernel or QEMU is a file on another machine.
    """
    fields = {name: capsule.manifest["host"].get(name) for name in ("kernel", "qemu", "cpu")}
    fields |= {name: capsule.manifest["host"].get(name, "") for name in ("append", "machine")}
    fields["kind"] = "auto"
    if "emulated" in capsule.manifest["machine"]:
        fields["kind"] = "emulated"
    fields |= chosen
    for name, value in fields.items():
        if not isinstance(value, str):
            raise UsageError(f"the capsule's host.{name} is not text: {value!r}")
        if name in ("kernel", "qemu") and name not in chosen and "/" in value:
            raise UsageError(
                f"the capsule was made with a {name} in a file of another machine: {value}",
                hint=f"choose one with `host.{name}`",
            )
    return HostSettings(**fields)
