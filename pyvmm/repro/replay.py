"""Reproductions to and from capsules: saved with what they need, run again, and compared."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pyvmm.base.records import Record
from pyvmm.errors import EXIT_FAILED, EXIT_HOST, EXIT_OK, UsageError
from pyvmm.host.settings import HostSettings
from pyvmm.repro import cases
from pyvmm.repro.capsule import Capsule
from pyvmm.repro.model import CANNOT_TELL, Reproduction
from pyvmm.repro.runner import Job, ReproResult

FILES: Final = "files/"
MODULE: Final = "module/"
SEEDS: Final = range(1 << 24)


def pack(result: ReproResult) -> Capsule:
    """Everything to do that job again, and what came of it."""
    job = result.job
    paths = {**job.reproduction.files, **job.files}
    members = {f"{FILES}{name}": path.read_bytes() for name, path in paths.items()}
    if (source := job.module or job.reproduction.module) is not None:
        members[f"{MODULE}{source.name}"] = source.read_bytes()
    return Capsule(result.document(), members)


class SavedVerdict(Record):
    """What a capsule says came of it when it was made."""

    verdict: str
    machine: str
    pyvmm: str

    def compare(self, now: ReproResult) -> tuple[str, int]:
        """Whether that verdict holds, in a sentence; and the exit code.

        What comes after a comma depends on the moment: contents are lost when a change of length
        falls into a hold.
        """
        finding = now.finding
        if _family(finding.verdict) == _family(self.verdict):
            return f"the verdict holds: {self.verdict} then, {finding.verdict} now", EXIT_OK
        text = f"{self.verdict} then, {finding.verdict} now"
        if finding.code == CANNOT_TELL:
            return f"it cannot be told whether the verdict holds: {text}", EXIT_HOST
        return f"the verdict does not hold: {text}", EXIT_FAILED


def _family(verdict: str) -> str:
    return verdict.partition(",")[0]


def saved_verdict(capsule: Capsule) -> SavedVerdict:
    """What came of it when it was made."""
    manifest = capsule.manifest
    return SavedVerdict(manifest["verdict"], manifest["machine"], manifest["pyvmm"])


@contextlib.contextmanager
def unpacked(capsule: Capsule, where: HostSettings, *, trust: bool) -> Iterator[Job]:
    """The capsule's job, with its own files, for as long as this lasts.

    Raises: UsageError, where there is no such reproduction, or the capsule brings programs that
    are not this pyvmm's and nobody said to trust them.
    """
    reproduction = cases.find(capsule.manifest["reproduction"])
    texts = capsule.manifest["options"]
    seed = capsule.manifest["seed"]
    if seed not in SEEDS:
        raise UsageError(f"the capsule's seed {seed} is out of range")
    job = Job(
        reproduction=reproduction,
        settings=reproduction.read(texts),
        where=where,
        texts=texts,
        seed=seed,
    )
    strange = list(_strange(capsule, reproduction))
    if strange and not trust:
        raise UsageError(
            f"the capsule brings programs of its own: {', '.join(strange)}",
            hint="they run on the host, with access to your files; --trust runs them all the same",
        )
    with tempfile.TemporaryDirectory(prefix="pyvmm-capsule-") as scratch:
        paths = capsule.unpack(Path(scratch))
        files = {n.removeprefix(FILES): p for n, p in paths.items() if n.startswith(FILES)}
        module = next((path for name, path in paths.items() if name.startswith(MODULE)), None)
        yield job.replace(files=files, module=module)


def _strange(capsule: Capsule, reproduction: Reproduction) -> Iterator[str]:
    """The members that would run on the host, and are not what this pyvmm has."""
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
    """The host a capsule was made on, but for what the user chose.

    Raises: UsageError, where that was a file of somebody's.
    """
    fields = {name: capsule.manifest["host"].get(name) for name in ("kernel", "qemu", "cpu")}
    fields |= {"append": capsule.manifest["host"].get("append", ""), "kind": "auto"}
    if "emulated" in capsule.manifest["machine"]:
        fields["kind"] = "emulated"
    fields |= chosen
    for name, value in fields.items():
        if not isinstance(value, str):
            raise UsageError(f"the capsule names no {name} of a host: {value!r}")
        if name in ("kernel", "qemu") and name not in chosen and "/" in value:
            raise UsageError(
                f"the capsule was made with a {name} of its maker's: {value}",
                hint=f"--host-{name} names the one to use here",
            )
    return HostSettings(**fields)
