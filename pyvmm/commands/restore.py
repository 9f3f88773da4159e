"""``pyvmm restore``: restore a VM from a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from pyvmm.cli import Invocation, say
from pyvmm.commands._deviceopts import device_needs, read_disk, read_pmem
from pyvmm.commands._hostopts import host_options, run_here_or_forward
from pyvmm.commands._options import (
    EXISTING_FILE,
    NEW_SNAPSHOT,
    Option,
    file_option,
    no_sandbox,
    trust_option,
)
from pyvmm.commands._several import run_several
from pyvmm.errors import UsageError
from pyvmm.host.settings import HostSettings
from pyvmm.host.share import Needs
from pyvmm.snapshot.trust import admitted, outside, parents


def again(*names: str, metavar: str) -> Option:
    """Return an option for files that replace those of the snapshot."""
    return click.option(
        *names, multiple=True, metavar=metavar,
        help="Use FILE in place of the one in the snapshot; give each of them, in order.",
    )  # fmt: skip


@click.command(
    epilog="The keys and exit codes are those of `pyvmm run`. Exit code 3 can also mean that this "
    "host cannot restore the guest."
)
@click.argument("file", type=EXISTING_FILE)
@click.option("--name", metavar="NAME", show_default="as it was saved", help="The guest's name.")
@click.option(
    "--count", type=click.IntRange(1, 1000), default=1, metavar="N",
    help="Restore N VMs, NAME-1 to NAME-N, without a terminal.",
)  # fmt: skip
@click.option(
    "--clone", is_flag=True,
    help="Restore a VM beside the one that was saved, with another name: --name, or NAME-PID.",
)  # fmt: skip
@click.option(
    "--memory", type=click.Choice(["lazy", "eager"]), show_default="lazy, but eager through 9p",
    help="lazy: read memory on first use, and check the file while the guest runs. eager: read and "
    "check all memory first.",
)  # fmt: skip
@click.option(
    "--clock", type=click.Choice(["continue", "catch-up"]), default="continue",
    help="continue: the guest's clocks continue from the save. catch-up: they advance by the time "
    "since the save.",
)  # fmt: skip
@click.option(
    "--force", is_flag=True, help="Run the guest without the state that this host's KVM refuses."
)
@again("-d", "--disk", metavar="FILE[,direct]")
@again("--pmem", metavar="FILE")
@trust_option
@click.option("--timeout", type=float, metavar="SECONDS", help="End the guest after SECONDS.")
@file_option(
    "--save-on-exit", "Save the guest to FILE when a signal, key or timeout ends it.",
    kind=NEW_SNAPSHOT,
)  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Describe the machine on stderr.")
@no_sandbox
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@host_options
@click.pass_obj
def restore(invocation: Invocation, /, where: HostSettings, file: Path, **options: Any) -> int:
    """Restore a VM from a file.

    FILE is a snapshot. The guest's console is on this terminal, as with `pyvmm run`.  Disks keep
    what was written to them after the guest was saved.

    FILE names its disks and other files: `pyvmm snapshot show` lists them.  They are opened if you
    saved FILE on this machine, if they lie beside FILE, if you give them again, or with --trust.
    """
    invocation.debug |= options["debug"]
    saved_to = options["save_on_exit"]
    if options["count"] > 1 and saved_to:
        raise UsageError("--count and --save-on-exit contradict each other: there is one file")
    given = (*map(read_disk, options["disk"]), *map(read_pmem, options["pmem"]))
    snapshot, state = admitted(file, given, trust=options["trust"])
    with snapshot:
        opened = [*parents(snapshot), *outside(state.config)]
    config = state.config
    clone = f"{config.name}-{os.getpid()}" if options["clone"] else config.name
    config = config.replace(name=options["name"] or clone, timeout_s=options["timeout"])
    needs = Needs(
        reads=(file, *(one.path for one in opened)),
        creates=(saved_to,) if saved_to else (),
    ) + device_needs(config.devices)
    ttys = config.ttys if options["count"] == 1 else frozenset()
    run_here_or_forward(where, needs, ttys, saves=saved_to is not None, restores=True)
    if options["clone"] or options["count"] > 1:
        from pyvmm.snapshot.clones import warning  # lazily: most restores continue one VM

        if found := warning(state):
            say(f"{file}: {found}")
    if options["count"] > 1:
        return run_several(file, config.name, options)
    for one in opened:
        say(f"{file} opens {one}")
    # Imported lazily: a command that is forwarded does not need them.
    from pyvmm.commands._attached import Extras, run_attached
    from pyvmm.snapshot.restorer import ClockPolicy, Reading, Restorer

    restorer = Restorer(
        file,
        reading=Reading(options["memory"]) if options["memory"] else None,
        clock=ClockPolicy(options["clock"]),
        force=options["force"],
        given=given,
        trust=options["trust"],
    )
    extras = Extras(
        verbose=options["verbose"],
        restorer=restorer,
        save_on_exit=saved_to,
        sandbox=invocation.owns_process and not options["no_sandbox"],
    )
    return run_attached(config, extras)
