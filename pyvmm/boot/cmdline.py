"""The kernel command line, as lkvm makes it.

Source: kvmtool, builtin-run.c, kvm_run_set_real_cmdline().
"""

from __future__ import annotations

# Linux's name of each console
CONSOLES = {"serial": "ttyS0", "virtio": "hvc0", "hv": "hvc0"}

# Linux uses plugged memory at once, for pages that it can move away again. Debian's kernels wait
# for a program to enable that memory.
# Source: Linux, Documentation/admin-guide/mm/memory-hotplug.rst, "Onlining and Offlining"
ONLINE = "memhp_default_state=online_movable "


def command_line(
    params: str, *, console: str = "serial", hotplug: bool = False, defaults: bool = True
) -> str:
    """Return lkvm's defaults for a guest with that console, then the user's parameters.

    With ``hotplug`` Linux uses plugged memory at once. Where parameters contradict, Linux obeys the
    last: the user's.
    """
    if not defaults:
        return params
    online = ONLINE if hotplug else ""
    return f" console={CONSOLES[console]} root=/dev/vda rw {online}{params}"
