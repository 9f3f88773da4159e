"""``pyvmm host``: manage the emulated arm64 hosts."""

from __future__ import annotations

import contextlib
import mmap
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pyvmm.base.dirs import cache_dir, remove_cache, size_on_disk
from pyvmm.cli import echo
from pyvmm.commands._hostopts import emulated_options
from pyvmm.commands._options import json_option
from pyvmm.commands._output import show
from pyvmm.commands.host import _list
from pyvmm.errors import EXIT_HOST, EXIT_OK
from pyvmm.host import forward
from pyvmm.host.instance import Instance
from pyvmm.host.progress import Progress
from pyvmm.host.running import (
    UNCONFINED,
    Running,
    all_running,
    end_orphans,
    running_at,
    sessions,
    stop,
)
from pyvmm.host.saved import everyone, remove
from pyvmm.host.settings import LINUX, QEMU, HostSettings

SCHEMA = 1


@click.group()
def host() -> None:
    """Manage the emulated arm64 hosts.

    A host is a QEMU that emulates an arm64 machine with EL2 and SVE and runs a Debian kernel;
    pyvmm uses that kernel's /dev/kvm.  It is made from Debian packages when it is first needed,
    and saved in the cache: later starts take less than a second.  It ends after 15
    minutes without a command (PYVMM_HOST_IDLE=SECONDS).
    """


@host.command()
@emulated_options
def start(settings: HostSettings) -> None:
    """Start a host for the next command, and make it the first time."""
    instance = Instance(settings, Progress())
    before = running_at(instance.sockets)
    began = time.monotonic()
    running = instance.ensure()
    took = "was running" if before else f"started in {time.monotonic() - began:.2f} s"
    echo(f"{_title(running)}: {took}", err=True)


@host.command(name="stop")
@click.option("--all", "everything", is_flag=True, help="Stop every host, whatever its settings.")
@emulated_options
def stop_command(settings: HostSettings, everything: bool) -> None:
    """Stop a running host; commands running in it end with an error."""
    if everything:
        end_orphans()
        chosen = list(all_running())
    else:
        found = running_at(Instance(settings, Progress()).sockets)
        chosen = [found] if found else []
    for running in chosen:
        stop(running)
        echo(f"{_title(running)}: stopped", err=True)
    if not chosen:
        echo("no such host is running", err=True)


@host.command()
@json_option
def status(as_json: bool) -> None:
    """Show which hosts run, and which are saved and ready to start."""
    running = {r.path.name: r for r in all_running()}
    rows = [_row(path.name, facts, path, running.get(path.name)) for path, facts in everyone()]
    shown = {row["name"] for row in rows}
    rows += [_row(n, r.facts, None, r) for n, r in running.items() if n not in shown]
    document = {"schema": SCHEMA, "cache": str(cache_dir()), "hosts": rows}
    none = "no emulated host yet: the first command that needs one makes it"
    show(as_json, document, map(_line, rows) if rows else [none])


@host.command(name="list")
@click.option("--refresh", is_flag=True, help="Read the package lists first; this takes minutes.")
@json_option
def list_command(refresh: bool, as_json: bool) -> int:
    """Show which kernels and QEMUs a host can have, and the ready-made hosts.

    --host-kernel and --host-qemu take a version, a Debian suite or a path. For a version, pyvmm
    takes the newest match in the cache, else in Debian. A suite has the versions that it had when
    pyvmm last read its package lists. The table shows these, unless --refresh reads the lists
    again. --host-model takes a name of the third table.
    Exit codes: 0 success; 3 the mirror does not answer --refresh.
    """
    answered = _list.refresh(Progress()) if refresh else True
    kernels, qemus = _list.rows(LINUX), _list.rows(QEMU)
    models = _list.models()
    document = {
        "schema": SCHEMA, "cache": str(cache_dir()), "kernels": kernels, "qemus": qemus,
        "models": models,
    }  # fmt: skip
    tables = (_list.lines(LINUX, kernels), [""], _list.lines(QEMU, qemus), [""],
              _list.model_lines(models))  # fmt: skip
    show(as_json, document, [line for table in tables for line in table])
    return EXIT_OK if answered else EXIT_HOST


@host.command()
@emulated_options
def shell(settings: HostSettings) -> None:
    """Open a shell in the host, as your user, with your files at the same paths."""
    sys.exit(forward(settings, ["sh"]))


@host.command(
    name="exec",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@emulated_options
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_command(settings: HostSettings, command: tuple[str, ...]) -> None:
    """Run a command in the host: pyvmm host exec -- COMMAND [ARGS].

    The host has Python 3.11 with pyvmm and its dependencies, and busybox.  `python3 -m MODULE`
    runs in a fork of a process that has pyvmm loaded, and so starts at once.
    """
    sys.exit(forward(settings, list(command)))


@host.command(name="rm")
@click.option("--all", "everything", is_flag=True, help="Remove every host, and the whole cache.")
@emulated_options
def rm(settings: HostSettings, everything: bool) -> None:
    """Stop and remove a saved host, or with --all everything in pyvmm's cache."""
    if everything:
        for running in all_running():
            stop(running)
        end_orphans()
        removed = size_on_disk(cache_dir())
        echo(f"{remove_cache()}: removed {removed / 1e6:.0f} MB", err=True)
        return
    instance = Instance(settings, Progress())
    found = running_at(instance.sockets)
    if found:
        stop(found)
    chosen = [path for path, facts in everyone() if facts.get("settings") == asdict(settings)]
    for path in chosen:
        remove(path)
        echo(f"{path.name}: removed", err=True)
    if not chosen:
        echo("no such host is saved", err=True)


def _title(running: Running) -> str:
    kernel = running.facts["kernel"]
    return f"emulated host {running.path.name} (Linux {kernel}, {running.description})"


def _row(
    name: str, facts: dict[str, Any], saved: Path | None, running: Running | None
) -> dict[str, Any]:
    """Return a host's row, for ``status --json``."""
    row: dict[str, Any] = {
        "name": name,
        "kernel": facts.get("kernel"),
        "qemu": facts.get("qemu"),
        "cpu": facts.get("cpu"),
        "machine": facts.get("settings", {}).get("machine", ""),
        "memory_bytes": facts.get("memory"),
        "saved": str(saved) if saved else None,
        "saved_bytes": size_on_disk(saved) if saved else 0,
        "running": running is not None,
    }
    if running is not None:
        row |= {
            "pid": running.pid,
            "sessions": sessions(running),
            "uptime_s": round(time.time() - running.facts["started"], 1),
            "rss_bytes": _rss(running.pid),
            "sandbox": running.facts.get("sandbox", False),
            "confined": running.is_confined,
            "why_unconfined": running.facts.get(UNCONFINED),
        }
    return row


def _line(row: dict[str, Any]) -> str:
    state = "saved"
    if row["running"]:
        state = (
            f"running, process {row['pid']}, {row['sessions']} commands, "
            f"up {row['uptime_s']:.0f} s, {row['rss_bytes'] / 1e6:.0f} MB resident"
        )
        if not row["confined"]:
            state += f", sees all of your files ({row['why_unconfined']})"
    machine = f", -M {row['machine']}" if row["machine"] else ""
    return (
        f"{row['name']}  Linux {row['kernel']}, QEMU {row['qemu']}, -cpu {row['cpu']}{machine}: "
        f"{state}; "
        f"{row['saved_bytes'] / 1e6:.0f} MB on disk"
    )


def _rss(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * mmap.PAGESIZE
    return 0
