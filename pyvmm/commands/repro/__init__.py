"""``pyvmm repro``: a command for each reproduction of a known bug, and one for capsules."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pyvmm.base.files import write_whole
from pyvmm.cli import echo
from pyvmm.commands._fields import spell
from pyvmm.commands._hostopts import host_options
from pyvmm.commands._options import FILE, added, file_option, json_option
from pyvmm.commands.repro import _report
from pyvmm.host.progress import Progress
from pyvmm.host.settings import KERNEL_SUITES, QEMU_SUITES, HostSettings
from pyvmm.repro import cases, replay
from pyvmm.repro.capsule import Capsule
from pyvmm.repro.matrix import Matrix
from pyvmm.repro.model import Option, Reproduction
from pyvmm.repro.runner import Job, ReproResult, perform

EPILOG = (
    "Exit codes: 0 not reproduced, and a control shows that the bug would have been seen; "
    "1 reproduced, or something else is wrong; 2 usage; 3 cannot tell, with the reason."
)


class Reproductions(click.Group):
    """A group with a command for each reproduction."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return every reproduction, then the other commands."""
        return [*cases.all_cases(), *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Make a reproduction's command from its options."""
        reproduction = cases.all_cases().get(cmd_name)
        return (
            super().get_command(ctx, cmd_name) if reproduction is None else _command(reproduction)
        )


@click.group(cls=Reproductions)
def repro() -> None:
    """Reproduce known bugs, or show their absence.

    Each command looks for one bug on this machine's KVM, or in an emulated host, and prints the
    evidence and a verdict. A bug is absent only if the command also saw a fault that it injected
    as a control.
    """


@repro.command(name="run")
@click.argument("capsule", type=FILE)
@click.option("--trust", is_flag=True, help="Run the capsule's own programs on the host.")
@json_option
@host_options
def run_capsule(where: HostSettings, capsule: Path, trust: bool, as_json: bool) -> int:
    """Run a saved reproduction again, and check its verdict.

    It runs on a host like that of the saved run, unless options choose another. Exit codes: 0 the
    same verdict; 1 another; 2 the file is damaged or not trusted; 3 cannot tell.
    """
    found = Capsule.read(capsule)
    chosen = {name: getattr(where, name)
              for name in ("kernel", "qemu", "machine", "cpu", "append")
              if _is_given(f"host_{name}", "host_model")}  # fmt: skip
    if _is_given("host"):
        chosen["kind"] = where.kind
    settings = replay.host_of(found, chosen)
    with replay.unpacked(found, settings, trust=trust) as job:
        result = perform(job, Progress())
    then = found.manifest
    sentence, code = replay.compare(then["verdict"], result.finding)
    show(result, as_json=as_json)
    click.echo(err=as_json)
    echo(f"then         {then['machine']}, pyvmm {then['pyvmm']}", err=as_json)
    echo(sentence, err=as_json)
    return code


def _command(reproduction: Reproduction) -> click.Command:
    """Make the command of one reproduction."""

    def run(where: HostSettings, **options: Any) -> int:
        texts = {option.key: options[option.key] for option in reproduction.options}
        job = Job.of(reproduction, texts, where, options["seed"])
        return _run_matrix(job, options) if options["matrix"] else _run_once(job, options)

    options = added(*map(_option, reproduction.options), *_GENERAL)
    command: Any = options(host_options(run))
    help_text = f"{reproduction.title}\n\n{inspect.getdoc(reproduction.work) or ''}"
    made = click.command(name=reproduction.name, help=help_text, epilog=EPILOG)(command)
    assert isinstance(made, click.Command)
    return made


_GENERAL = (
    click.option("--seed", type=click.IntRange(0, (1 << 24) - 1), default=1, metavar="N",
                 help="The seed of the patterns."),
    json_option,
    file_option(
        "--report", "Write a Markdown report to FILE, with JSON and a picture beside it."),
    file_option(
        "--save", "Write a file from which `pyvmm repro run` runs this again.", "CAPSULE"),
    click.option("--matrix", is_flag=True,
                 help="Run every variant on emulated hosts with every QEMU and every kernel, or "
                 "with those of --host-qemu and --host-kernel."),
)  # fmt: skip


def _option(option: Option) -> Any:
    kind: Any = click.Choice(option.choices) if option.choices else str
    return click.option(
        f"--{option.name}", option.key, type=kind, default=option.default,
        metavar=None if option.choices else option.metavar, help=option.help,
    )  # fmt: skip


def _run_once(job: Job, options: dict[str, Any]) -> int:
    """Run the reproduction, print and write its result; return the exit code."""
    result = perform(job, Progress())
    show(result, as_json=options["as_json"])
    _write_report(options["report"], _report.markdown(result), result.document())
    if options["save"] is not None:
        replay.pack(result).write(options["save"])
    return result.finding.code


def _run_matrix(job: Job, options: dict[str, Any]) -> int:
    """Run the matrix on every host; after a Ctrl-C too, report the finished runs."""
    qemus = [job.where.qemu] if _is_given("host_qemu", "host_model") else list(QEMU_SUITES)
    kernels = [job.where.kernel] if _is_given("host_kernel", "host_model") else list(KERNEL_SUITES)
    matrix = Matrix(job, qemus, kernels)
    as_json, path = options["as_json"], options["report"]
    table = _report.MatrixTable(matrix.cells, sys.stderr if as_json else sys.stdout)
    try:
        with table.showing():
            matrix.run(table.begun, table.finished)
    finally:
        if as_json:
            click.echo(json.dumps(matrix.document(), indent=2))
        picture = matrix.picture()
        name = path.with_suffix(".svg").name if path is not None and picture else None
        _write_report(path, matrix.markdown(name), matrix.document(), picture)
    return matrix.exit_code()


def _write_report(
    path: Path | None, text: str, document: dict[str, Any], picture: str | None = None
) -> None:
    if path is None:
        return
    write_whole(path, text.encode())
    write_whole(path.with_suffix(".json"), _json(document).encode())
    if picture:
        write_whole(path.with_suffix(".svg"), picture.encode())


def _is_given(*parameters: str) -> bool:
    """Return whether the user gave one of those options."""
    source = click.get_current_context().get_parameter_source
    return any(source(name) is not ParameterSource.DEFAULT for name in parameters)


def show(result: ReproResult, *, as_json: bool) -> None:
    """Print the result of a job."""
    if as_json:
        click.echo(_json(result.document()), nl=False)
        return
    for line in _report.lines(result):
        echo(line)


def _json(document: dict[str, Any]) -> str:
    if "why" in document:
        document = document | {"why": [spell(sentence) for sentence in document["why"]]}
    return json.dumps(document, indent=2) + "\n"
