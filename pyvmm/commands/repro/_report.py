"""The result of a reproduction: lines for a terminal, or a Markdown report."""

from __future__ import annotations

from collections.abc import Iterator

from pyvmm.commands._fields import spell
from pyvmm.repro.runner import LOST, ReproResult


def lines(result: ReproResult) -> Iterator[str]:
    """Yield the machine, the evidence and the verdict."""
    yield f"machine      {result.machine}"
    yield from _shown(result)
    yield ""
    yield from verdict(result)


def verdict(result: ReproResult) -> Iterator[str]:
    """Yield the verdict and its reasons."""
    finding = result.finding
    yield finding.verdict
    for sentence in finding.why:
        yield f"  {spell(sentence)}"
    if finding.advice:
        yield f"  hint: {spell(finding.advice)}"


def markdown(result: ReproResult) -> str:
    """Return the Markdown report."""
    job, finding = result.job, result.finding
    settings = [f"- {name}: {value}" for name, value in job.settings.items()]
    parts = [
        f"# {job.reproduction.name}: {finding.verdict}",
        job.reproduction.title,
        "\n".join(f"- {spell(sentence)}" for sentence in finding.why),
        f"Machine: {result.machine}",
        "## Settings",
        "\n".join([*settings, f"- seed: {job.seed}"]),
        "## What was seen",
        "```\n" + "\n".join(_shown(result)) + "\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _shown(result: ReproResult) -> Iterator[str]:
    if LOST not in result.evidence:
        yield from result.job.reproduction.show(result.job.settings, result.evidence)
