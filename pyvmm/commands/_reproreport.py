"""What came of a reproduction, in lines for a terminal and as a Markdown report."""

from __future__ import annotations

from collections.abc import Iterator

from pyvmm.repro.runner import LOST, Outcome


def lines(outcome: Outcome) -> Iterator[str]:
    """The whole of it for people."""
    yield f"machine      {outcome.machine}"
    yield from _shown(outcome)
    yield ""
    yield from verdict(outcome)


def verdict(outcome: Outcome) -> Iterator[str]:
    """The verdict, and why."""
    finding = outcome.finding
    yield finding.verdict
    for sentence in finding.why:
        yield f"  {sentence}"
    if finding.advice:
        yield f"  hint: {finding.advice}"


def markdown(outcome: Outcome) -> str:
    """A report to be sent to somebody."""
    job, finding = outcome.job, outcome.finding
    settings = [f"- {name}: {value}" for name, value in job.settings.items()]
    parts = [
        f"# {job.reproduction.name}: {finding.verdict}",
        job.reproduction.title,
        "\n".join(f"- {sentence}" for sentence in finding.why),
        f"Machine: {outcome.machine}",
        "## Settings",
        "\n".join([*settings, f"- seed: {job.seed}"]),
        "## What was seen",
        "```\n" + "\n".join(_shown(outcome)) + "\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _shown(outcome: Outcome) -> Iterator[str]:
    if LOST not in outcome.evidence:
        yield from outcome.job.reproduction.show(outcome.job.settings, outcome.evidence)
