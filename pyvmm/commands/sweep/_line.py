"""The command lines of a sweep: those of its runs, and those that ask its hosts."""

from __future__ import annotations

from pyvmm.arm64 import vl
from pyvmm.host.settings import HostSettings
from pyvmm.sweep.plan import IMAGE, INITRD, Run
from pyvmm.sweep.work import HostQuery


def query(where: HostSettings) -> HostQuery:
    """Return the query for a host's vector lengths."""
    return HostQuery(where, ("sve", "list", "--json", *_host_words(where)))


def command(run: Run) -> tuple[str, ...]:
    """Return a run's command line after ``pyvmm``."""
    guest = run.guest
    words = ["run", *_host_words(run.where)]
    words += [f"--sve-vls={vl.show(run.vls)}"] if run.vls else ["--no-sve"]
    words += [] if run.cpus is None else ["--cpus", str(run.cpus)]
    words += [] if guest.initrd is None else ["--initrd", INITRD]
    words += [] if guest.timeout_s is None else ["--timeout", f"{guest.timeout_s:g}"]
    return (*words, *guest.options, "--", IMAGE)


def _host_words(where: HostSettings) -> list[str]:
    return [
        f"--host={where.kind}",
        f"--host-kernel={where.kernel}",
        f"--host-qemu={where.qemu}",
        f"--host-cpu={where.cpu}",
        # Also if they are empty: PYVMM_HOST_MODEL would fill them in.
        f"--host-machine={where.machine}",
        f"--host-append={where.append}",
    ]
