"""The run of a reproduction, on this machine or in an emulated host, and its result."""

from __future__ import annotations

import json
import platform
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pyvmm import __version__, host
from pyvmm.base.computer import kind_of_machine
from pyvmm.base.records import Record, made
from pyvmm.errors import EXIT_SIGNAL, HostError
from pyvmm.host import share
from pyvmm.host.capture import CommandFailed, capture
from pyvmm.host.connection import Unreachable
from pyvmm.host.instance import Instance
from pyvmm.host.parts import kmodule
from pyvmm.host.progress import Progress
from pyvmm.host.running import Running, wait_for_end
from pyvmm.host.settings import HostSettings
from pyvmm.repro import worker
from pyvmm.repro.model import CANNOT_TELL, Case, Evidence, Finding, Reproduction, Settings

SCHEMA = 1
TIMEOUT_S = 120.0  # for a host that hangs; the worker sends an empty line every 5 s
LOST = "lost"  # the key of the verdict, if the worker returned no evidence


class Job(Record, kw_only=True):
    """One reproduction to run: its settings, its host and its files.

    ``texts`` are the settings as the user typed them.  ``files`` replace pyvmm's files, and
    ``module`` its source of the kernel module.
    """

    reproduction: Reproduction
    settings: Settings
    where: HostSettings
    texts: Mapping[str, str | None] = made(dict)
    seed: int = 1
    files: Mapping[str, Path] = made(dict)
    module: Path | None = None

    @classmethod
    def of(
        cls, reproduction: Reproduction, texts: Mapping[str, Any], where: HostSettings, seed: int
    ) -> Job:
        """Return the job with settings as a user types them.  Raises: UsageError."""
        settings = reproduction.read(texts)
        return cls(
            reproduction=reproduction, settings=settings, where=where, texts=texts, seed=seed
        )


class ReproResult(Record, kw_only=True):
    """The evidence of a job, and its verdict."""

    job: Job
    evidence: Evidence
    machine: str

    @property
    def finding(self) -> Finding:
        """The verdict."""
        if LOST in self.evidence:
            return Finding(*self.evidence[LOST])
        return self.job.reproduction.judge(self.job.settings, self.evidence)

    def document(self) -> dict[str, Any]:
        """Return the result as JSON."""
        finding = self.finding
        return {
            "schema": SCHEMA,
            "reproduction": self.job.reproduction.name,
            "pyvmm": __version__,
            "machine": self.machine,
            "host": asdict(self.job.where),
            "options": dict(self.job.texts),
            "settings": self.job.settings,
            "seed": self.job.seed,
            "verdict": finding.verdict,
            "exit_code": finding.code,
            "why": list(finding.why),
            "evidence": self.evidence,
        }


def perform(job: Job, progress: Progress) -> ReproResult:
    """Run the job on this machine's KVM or in its emulated host.

    Raises: HostError, if there is no host.
    """
    if host.is_local(job.where):
        return _here(job, progress)
    host.say_why_emulated(job.where, progress.say)
    instance = Instance(job.where, progress)
    for last in (False, True):
        running = instance.ensure()
        try:
            return _inside(job, running, progress)
        except Unreachable:  # the host was just stopping, perhaps because it was idle
            if last:
                raise
            wait_for_end(running)
    raise AssertionError


def _here(job: Job, progress: Progress) -> ReproResult:
    machine = f"{kind_of_machine() or 'hardware'}, Linux {platform.release()}"
    try:
        module = _module(job, kmodule.build_for_this_machine, progress)
    except HostError as error:
        return ReproResult(job=job, evidence={LOST: _lost(error)}, machine=machine)
    return ReproResult(job=job, evidence=worker.do(_case(job, module)), machine=machine)


def _inside(job: Job, running: Running, progress: Progress) -> ReproResult:
    machine = f"emulated: {running.description}, Linux {running.facts.get('kernel')}"
    argv = ["python3", "-m", worker.__name__]
    try:
        module = _module(job, partial(kmodule.build, job.where.kernel), progress)
        needs = share.Needs(reads=(*job.files.values(), *([module] if module else [])))
        share.refuse_hidden(needs.files)
        data = json.dumps(asdict(_case(job, module))).encode()
        answer = capture(running, argv, data, as_root=True, timeout_s=TIMEOUT_S, needs=needs)
    except Unreachable:
        raise
    except HostError as error:
        return ReproResult(job=job, evidence={LOST: _lost(error)}, machine=machine)
    return ReproResult(job=job, evidence=json.loads(answer), machine=machine)


def _module(job: Job, build: Callable[[Path, Progress], Path], progress: Progress) -> Path | None:
    """Build the kernel module, if the job's settings need it."""
    source = job.module or job.reproduction.module
    if source is None or not job.reproduction.wants_module(job.settings):
        return None
    return build(source, progress)


def _lost(error: HostError) -> tuple[str, int, tuple[str, ...]]:
    """Return the verdict on a run without evidence: it is unknown whether the bug is present."""
    killed = isinstance(error, CommandFailed) and error.code == EXIT_SIGNAL + signal.SIGKILL
    why = (error.message, *([f"hint: {error.hint}"] if error.hint else []))
    return ("KILLED BY KERNEL" if killed else "INCONCLUSIVE", CANNOT_TELL, why)


def _case(job: Job, module: Path | None) -> Case:
    return Case(
        reproduction=job.reproduction.name,
        settings=job.settings,
        files={name: str(path) for name, path in job.files.items()},
        seed=job.seed,
        module=None if module is None else str(module),
    )
