"""The kernel command line, as lkvm makes it.

Source: kvmtool, builtin-run.c, kvm_run_set_real_cmdline().
"""

from __future__ import annotations

# The device that each kind of console is in Linux
CONSOLES = {"serial": "ttyS0", "virtio": "hvc0", "hv": "hvc0"}


# What Linux does with memory that is plugged: uses it, for what can be moved out of its way again.
# Without this it waits for a program to say so; so it is in Debian's kernels.
# Source: Linux, Documentation/admin-guide/mm/memory-hotplug.rst, "Onlining and Offlining"
ONLINE = "memhp_default_state=online_movable "


def command_line(
    params: str, *, console: str = "serial", hotplug: bool = False, defaults: bool = True
) -> str:
    """The command line of a guest with that console: lkvm's defaults, then the user's words.

    With ``hotplug``, memory that is plugged is used at once. The user's words come last, where
    Linux heeds them over the defaults.
    """
    if not defaults:
        return params
    online = ONLINE if hotplug else ""
    return f" console={CONSOLES[console]} root=/dev/vda rw {online}{params}"
