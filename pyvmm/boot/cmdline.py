"""The kernel command line, as lkvm makes it.

Source: kvmtool, builtin-run.c, kvm_run_set_real_cmdline().
"""

from __future__ import annotations

# The device that each kind of console is in Linux
CONSOLES = {"serial": "ttyS0", "virtio": "hvc0", "hv": "hvc0"}


def command_line(params: str, *, console: str = "serial", defaults: bool = True) -> str:
    """The command line of a guest with that console: lkvm's defaults, then the user's words.

    The user's come last, where Linux heeds them over the defaults.
    """
    return f" console={CONSOLES[console]} root=/dev/vda rw {params}" if defaults else params
