"""Running a reproduction where it belongs, and what came of it."""

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
from pyvmm.host import kmodule, share
from pyvmm.host.capture import CommandFailed, capture
from pyvmm.host.connection import Unreachable
from pyvmm.host.instance import Instance
from pyvmm.host.progress import Progress
from pyvmm.host.running import Running, wait_for_end
from pyvmm.host.settings import HostSettings
from pyvmm.repro import worker
from pyvmm.repro.model import CANNOT_TELL, Case, Evidence, Finding, Reproduction, Settings

SCHEMA = 1
TIMEOUT_S = 120.0  # with a host that hangs; the worker says something every 5 s
LOST = "lost"  # in evidence: why there is none


class Job(Record, kw_only=True):
    """One reproduction to be run: which, how, on which host, with whose files.

    ``texts`` are the settings as they were typed. ``files`` are those that are not pyvmm's own,
    ``module`` the source of the kernel module.
    """

    reproduction: Reproduction
    settings: Settings
    where: HostSettings
    texts: Mapping[str, str | None] = made(dict)
    seed: int = 1
    files: Mapping[str, Path] = made(dict)
    module: Path | None = None

    @property
    def module_source(self) -> Path | None:
        """The module's source where these settings want one."""
        wanted = self.reproduction.wants_module(self.settings)
        return (self.module or self.reproduction.module) if wanted else None


class ReproResult(Record, kw_only=True):
    """What came of a job."""

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
        """Everything, for JSON."""
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
    """Do the job on this machine's KVM or in its emulated host.

    Raises: HostError, where there is no host to do it in.
    """
    if host.is_local(job.where):
        return _here(job, progress)
    host.say_why_emulated(job.where, progress.say)
    instance = Instance(job.where, progress)
    for last in (False, True):
        running = instance.ensure()
        try:
            return _inside(job, running, progress)
        except Unreachable:  # it was just being stopped, or had been idle long enough
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
        share.refuse_hidden([*job.files.values(), *([module] if module else [])])
        data = json.dumps(asdict(_case(job, module))).encode()
        answer = capture(running, argv, data, as_root=True, patience_s=TIMEOUT_S)
    except Unreachable:
        raise
    except HostError as error:
        return ReproResult(job=job, evidence={LOST: _lost(error)}, machine=machine)
    return ReproResult(job=job, evidence=json.loads(answer), machine=machine)


def _module(job: Job, build: Callable[[Path, Progress], Path], progress: Progress) -> Path | None:
    """The kernel module, built, where the job wants one."""
    source = job.module_source
    return None if source is None else build(source, progress)


def _lost(error: HostError) -> tuple[str, int, tuple[str, ...]]:
    """The verdict where nothing came back: never that nothing is wrong."""
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
