"""A reproduction on many emulated hosts: every QEMU with every kernel and every variant."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

from pyvmm.errors import EXIT_OK, HostError
from pyvmm.host import saved
from pyvmm.host.instance import Instance
from pyvmm.host.progress import Progress
from pyvmm.host.running import running_at, stop
from pyvmm.host.settings import HostSettings
from pyvmm.repro.model import CANNOT_TELL, THERE
from pyvmm.repro.picture import Line, svg
from pyvmm.repro.runner import LOST, SCHEMA, Job, ReproResult, perform


class Cell:
    """One run of a matrix: its host, its variant, and its result."""

    def __init__(self, job: Job, variant: str) -> None:
        self.job = job
        self.variant = variant
        self.result: ReproResult | None = None
        self.seconds = 0.0

    @property
    def model(self) -> str:
        """The host's QEMU, as in HostSettings."""
        return self.job.where.qemu

    @property
    def kernel(self) -> str:
        """The host's kernel, as in HostSettings."""
        return self.job.where.kernel

    @property
    def verdict(self) -> str:
        """The name of the verdict, or empty before the run has ended."""
        return "" if self.result is None else self.result.finding.verdict

    def points(self) -> dict[int, int]:
        """Return the points of this run's line in the picture; none if it has no line."""
        curve = self.job.reproduction.curve
        if curve is None or self.result is None or LOST in self.result.evidence:
            return {}
        return dict(curve.points(self.result.evidence))


class Matrix:
    """The runs of a matrix, host by host."""

    def __init__(self, job: Job, qemus: Sequence[str], kernels: Sequence[str]) -> None:
        self.cells = [
            Cell(job.replace(where=where, settings=settings), name)
            for qemu, kernel in product(qemus, kernels)
            for where in [job.where.replace(kind="emulated", qemu=qemu, kernel=kernel)]
            for name, settings in job.reproduction.variants(job.settings)
        ]
        self._job = job

    def run(self, begun: Callable[[Cell], None], finished: Callable[[Cell], None]) -> None:
        """Run all cells; a host that did not exist before is removed after its last run."""
        hosts: dict[HostSettings, list[Cell]] = defaultdict(list)
        for cell in self.cells:
            hosts[cell.job.where].append(cell)
        for where, cells in hosts.items():
            before = {path.name for path, _ in saved.everyone()}
            try:
                for cell in cells:
                    begun(cell)
                    _perform(cell)
                    finished(cell)
            finally:
                # The name is known only now: it depends on the versions that the first run
                # downloaded.
                instance = Instance(where, Progress(quiet=True))
                if (running := running_at(instance.sockets)) is not None:
                    stop(running)
                if instance.name not in before:
                    saved.remove(saved.directory(instance.name))

    def exit_code(self) -> int:
        """Return the exit code of the worst verdict: bug present, unknown, absent."""
        codes = {cell.result.finding.code for cell in self.cells if cell.result is not None}
        return next((code for code in (THERE, CANNOT_TELL) if code in codes), EXIT_OK)

    def document(self) -> dict[str, Any]:
        """Return all results as JSON."""
        runs = [
            {"variant": cell.variant, "seconds": round(cell.seconds, 1), **cell.result.document()}
            for cell in self.cells
            if cell.result is not None
        ]
        return {"schema": SCHEMA, "reproduction": self._job.reproduction.name, "runs": runs}

    def picture(self) -> str | None:
        """Return an SVG with the lines of all models, or None if there are none."""
        reproduction = self._job.reproduction
        lines = list(self._lines())
        if reproduction.curve is None or not lines:
            return None
        title = f"{reproduction.name}: -cpu {self._job.where.cpu}"
        return svg(title, reproduction.curve.x, reproduction.curve.y, lines)

    def _lines(self) -> Iterator[Line]:
        """Yield a line for each model and variant; equal lines of a model are merged."""
        alike: dict[tuple[str, tuple[tuple[int, int], ...]], list[Cell]] = defaultdict(list)
        for cell in self.cells:
            if points := cell.points():
                alike[cell.model, tuple(sorted(points.items()))].append(cell)
        kernels = {cell.kernel for cell in self.cells}
        for (model, points_of), cells in alike.items():
            variants = list(dict.fromkeys(cell.variant for cell in cells if cell.variant))
            seen = {cell.kernel for cell in cells}
            some = "" if seen == kernels else f" (Linux {', '.join(sorted(seen))})"
            several = "" if len(variants) > 2 else f": {', '.join(variants)}"
            yield Line(f"QEMU {model}{several}{some}", dict(points_of))

    def markdown(self, picture: str | None) -> str:
        """Return the report; ``picture`` is the file name of the picture."""
        reproduction = self._job.reproduction
        kernels = list(dict.fromkeys(cell.kernel for cell in self.cells))
        head = ["QEMU", "variant", *(f"Linux {kernel}" for kernel in kernels)]
        table = [head, ["---"] * len(head), *self._table(kernels)]
        settings = [f"- {name}: {value}" for name, value in self._job.settings.items()]
        parts = [
            f"# {reproduction.name}: {reproduction.title}",
            "\n".join("| " + " | ".join(row) + " |" for row in table),
            f"![{reproduction.name}]({picture})" if picture else "",
            "## Settings",
            "\n".join([f"- host CPU: {self._job.where.cpu}", *settings]),
            "## Why",
            "\n".join(self._reasons()),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _table(self, kernels: Sequence[str]) -> Iterator[list[str]]:
        rows: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        for cell in self.cells:
            rows[cell.model, cell.variant][cell.kernel] = cell.verdict or "-"
        for (model, variant), verdicts in rows.items():
            yield [model, variant, *(verdicts.get(kernel, "-") for kernel in kernels)]

    def _reasons(self) -> Iterator[str]:
        for cell in self.cells:
            if cell.result is not None:
                machine = f"{cell.result.machine}, {cell.variant}".rstrip(", ")
                why = "; ".join(cell.result.finding.why)
                yield f"- {machine}: **{cell.verdict}** in {cell.seconds:.1f} s: {why}"


def _perform(cell: Cell) -> None:
    began = time.monotonic()
    try:
        cell.result = perform(cell.job, Progress(quiet=True))
    except HostError as error:  # the other hosts may work
        lost = {LOST: ("INCONCLUSIVE", CANNOT_TELL, (error.message,))}
        cell.result = ReproResult(job=cell.job, evidence=lost, machine=cell.job.where.label)
    cell.seconds = time.monotonic() - began
