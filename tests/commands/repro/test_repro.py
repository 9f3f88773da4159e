"""The matrix and its reports, with fake runs."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.commands.repro._report import MatrixTable
from pyvmm.errors import HostError
from pyvmm.host import saved
from pyvmm.host.instance import Instance
from pyvmm.host.progress import Progress
from pyvmm.host.settings import HostSettings
from pyvmm.repro import matrix as _repromatrix
from pyvmm.repro.cases import all_cases, find
from pyvmm.repro.matrix import Cell, Matrix
from pyvmm.repro.model import Evidence
from pyvmm.repro.runner import Job, ReproResult
from tests.repro.rows import evidence, following, row, settings

CLEAN = following({0: 64, 1: 64, 15: 64})
BUG = following({0: 16, 1: 32, 15: 64})
BROKEN = [row("before", None, 16), row("primed", 15, 16)]


def see(job: Job) -> Evidence:
    """Return the evidence that a host with each QEMU would give."""
    if job.where.qemu != "5.2":
        module = {"hits": 3, "last_zcr_el12": 2, "last_hcr_el2": 1 << 34}
        return evidence(CLEAN, module=module)
    if job.settings["arm"] == "never":
        return evidence([]) | {"rows": BROKEN}
    hacked = job.settings["hack"]
    module = {"hits": 3, "last_zcr_el12": hacked, "last_hcr_el2": 1 << 34}
    return evidence(BUG if hacked is None else following({0: 48, 1: 48, 15: 48}), module=module)


@pytest.fixture
def run(own: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Matrix]:
    """Return a function that runs a matrix with fake runs."""

    def perform(job: Job, progress: Progress) -> ReproResult:
        if job.where.kernel == "7.2":
            raise HostError("there is no such kernel today")
        saved.directory(Instance(job.where, progress).name).mkdir(exist_ok=True)
        return ReproResult(job=job, evidence=see(job), machine=f"QEMU {job.where.qemu}")

    def run(qemus: list[str], kernels: list[str], stream: io.StringIO | None = None) -> Matrix:
        job = Job(reproduction=find("zcr-el12"), settings=settings(), where=HostSettings())
        matrix = Matrix(job, qemus, kernels)
        table = MatrixTable(matrix.cells, stream or io.StringIO())
        with table.showing():
            matrix.run(table.begun, table.finished)
        return matrix

    monkeypatch.setattr(_repromatrix, "perform", perform)
    return run


Run = Callable[..., Matrix]


def verdicts(matrix: Matrix) -> dict[tuple[str, str, str], str]:
    return {(cell.model, cell.kernel, cell.variant): cell.verdict for cell in matrix.cells}


def test_every_host_is_tried_with_every_variant(run: Run) -> None:
    matrix = run(["5.2", "11"], ["6.1"])

    assert verdicts(matrix) == {
        ("5.2", "6.1", "no arm step"): "BASELINE BROKEN",
        ("5.2", "6.1", "guest alone"): "REPRODUCED",
        ("5.2", "6.1", "hack 2"): "REPRODUCED",
        ("11", "6.1", "no arm step"): "NOT REPRODUCED",
        ("11", "6.1", "guest alone"): "NOT REPRODUCED",
        ("11", "6.1", "hack 2"): "NOT REPRODUCED",
    }


@pytest.mark.parametrize(
    ("qemus", "kernels", "code"),
    [(["11"], ["6.1"], 0), (["5.2", "11"], ["6.1"], 1), (["11"], ["6.1", "7.2"], 3)],
)
def test_matrix_exits_with_the_worst_verdict(
    qemus: list[str], kernels: list[str], code: int, run: Run
) -> None:
    assert run(qemus, kernels).exit_code() == code


def test_matrix_continues_after_a_host_that_cannot_be_made(run: Run) -> None:
    matrix = run(["11"], ["7.2", "6.1"])

    assert verdicts(matrix)["11", "7.2", "guest alone"] == "INCONCLUSIVE"
    assert verdicts(matrix)["11", "6.1", "guest alone"] == "NOT REPRODUCED"
    assert "there is no such kernel today" in matrix.markdown(None)


def test_matrix_removes_only_the_hosts_that_it_made(run: Run) -> None:
    before = Instance(HostSettings(kind="emulated", qemu="11", kernel="6.1"), Progress()).name
    saved.directory(before).mkdir()

    run(["11", "5.2"], ["6.1"])

    assert [path.name for path, _ in saved.everyone()] == [before]


def test_report_is_a_table_with_a_column_for_each_kernel(run: Run) -> None:
    text = run(["5.2"], ["5.10", "6.1"]).markdown("zcr.svg")

    assert "| QEMU | variant | Linux 5.10 | Linux 6.1 |" in text
    assert "| 5.2 | guest alone | REPRODUCED | REPRODUCED |" in text
    assert "![zcr-el12](zcr.svg)" in text


def test_models_with_the_same_points_share_a_line(run: Run) -> None:
    names = [line.name for line in run(["5.2", "11"], ["5.10", "6.1"])._lines()]

    assert names == ["QEMU 5.2: guest alone", "QEMU 5.2: hack 2", "QEMU 11"]


def test_matrix_without_points_has_no_picture(run: Run) -> None:
    assert run(["11"], ["7.2"]).picture() is None


def test_each_run_prints_a_line_without_a_terminal(run: Run) -> None:
    stream = io.StringIO()

    run(["5.2"], ["6.1"], stream)

    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "BASELINE BROKEN",
        "REPRODUCED",
        "REPRODUCED",
    ]
    assert lines[0].endswith("QEMU 5.2, Linux 6.1, no arm step")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_table_is_live_on_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    terminal = Terminal()

    run(["11"], ["6.1"], terminal)

    first, *_, last = terminal.getvalue().split("VERDICT")
    assert "waiting" in terminal.getvalue() and "running" in terminal.getvalue()
    assert last.count("NOT REPRODUCED") == 3
    assert first.count("QEMU") == 1


def test_table_shows_running_and_waiting_runs(run: Run) -> None:
    matrix = run(["11"], ["6.1"])
    waiting = Cell(matrix.cells[0].job, "waits")
    running = Cell(matrix.cells[0].job, "runs")
    table = MatrixTable([matrix.cells[0], running, waiting], io.StringIO())

    table.begun(running)

    states = [table._state(cell)[0] for cell in (matrix.cells[0], running, waiting)]
    assert states == ["NOT REPRODUCED", "running", "waiting"]


@pytest.mark.parametrize("name", all_cases())
def test_defaults_of_every_reproduction_can_be_read_and_written(name: str) -> None:
    reproduction = find(name)

    assert set(reproduction.read({})) == {option.key for option in reproduction.options}
    for path in reproduction.files.values():
        assert path.parent.name in ("guests", "programs")
