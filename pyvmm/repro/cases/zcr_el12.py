"""The guest's ZCR_EL1 affects the host.

Known issue 1 of "[PATCH v4 00/25] KVM: arm64: SVE guest support".
"""

from __future__ import annotations

import re

from pyvmm.base.dirs import PACKAGE
from pyvmm.errors import UsageError
from pyvmm.repro import zcrhunt, zcrtable, zcrverdict
from pyvmm.repro.model import (
    GUESTS,
    PROGRAMS,
    Curve,
    Evidence,
    Option,
    Reproduction,
    Settings,
    Variants,
    number_in,
    parse_max_vl,
)

LENS = range(16)
DEFAULT_HACK = 2  # in a matrix: shortens the vectors of hosts with more than 384 bits
CONTROLS = ("vl", "zero", "flip", "pred", "module")


def parse_lens(text: str) -> list[int]:
    """Read values of LEN, such as 0-15 or 2,6.  Raises: UsageError."""
    lens: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,2})(?:-(\d{1,2}))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not (first in LENS and last in LENS and first <= last):
            raise UsageError(
                f"`zcr`={text}: not values of LEN from 0 to 15",
                hint="for example `zcr`=0-3,15",
            )
        lens += range(first, last + 1)
    return lens


def parse_controls(text: str) -> list[str]:
    """Read kinds of damage, or "none".  Raises: UsageError."""
    kinds = [part.strip() for part in text.split(",")]
    if kinds == ["none"]:
        return []
    for kind in kinds:
        if kind not in CONTROLS:
            known = ", ".join(("none", *CONTROLS))
            raise UsageError(f"`control`={kind}: not one of {known}")
    return list(dict.fromkeys(kinds))


def wants_module(settings: Settings) -> bool:
    """Return whether these settings need the kernel module."""
    return settings["hack"] is not None or "module" in settings["control"]


def variants(settings: Settings) -> Variants:
    """Return the runs on each host of a matrix; the first one needs a new host."""
    value = DEFAULT_HACK if settings["hack"] is None else settings["hack"]
    plain = {**settings, "hack": None}
    yield "no arm step", {**plain, "arm": "never"}
    yield "guest alone", plain
    yield f"hack {value}", {**settings, "hack": value}


def points(found: Evidence) -> dict[int, int]:
    """Return the host's vector length in bytes for each ZCR_EL1.LEN of the guest."""
    sweep = [row for row in found["rows"] if row["phase"] == "sweep"]
    return {row["len"]: row["vl_min"] for row in sweep}


OPTIONS = (
    Option(name="zcr", metavar="LEN,...", default="0-15", parse=parse_lens,
           help="The values of ZCR_EL1.LEN that the guest sets, in this order and then in "
           "reverse."),
    Option(name="guest-max-vl", metavar="BITS", parse=parse_max_vl,
           help="The guest's longest vector length (default: the host's)."),
    Option(name="cpu", metavar="N", parse=number_in("cpu", range(4096)),
           help="The CPU that guest and watcher share (default: the last one)."),
    Option(name="arm", default="auto", choices=("auto", "never", "always"),
           help="Whether ptrace (NT_ARM_SVE) makes the kernel load the watcher's SVE state before "
           "each hold. auto: only if the host's vector length is wrong without that."),
    Option(name="hack", metavar="N", parse=number_in("hack", range(16)),
           help="Load a kernel module that writes N to ZCR_EL12 each time KVM has saved a vCPU's "
           "registers. Known issue 1 of KVM's SVE patches (v4) describes this experiment."),
    Option(name="control", metavar="KIND,...", default="vl,zero,flip,pred", parse=parse_controls,
           help="Damage that the test does and must detect. vl, zero, flip, pred: by ptrace. "
           "module: a kernel module lowers ZCR_EL2, as the bug would. none: no control."),
    Option(name="rounds", metavar="N", default="1", parse=number_in("rounds", range(1, 1000)),
           help="The number of sweeps."),
    Option(name="hold-ms", metavar="MS", default="20",
           parse=number_in("hold_ms", range(1, 5000)),
           help="How long one hold of the watcher's registers lasts, in ms."),
)  # fmt: skip

REPRODUCTION = Reproduction(
    name="zcr-el12",
    title="A guest's ZCR_EL1 shortens the vectors of the host's programs.",
    options=OPTIONS,
    work=zcrhunt.hunt,
    judge=zcrverdict.judge,
    show=zcrtable.lines,
    files={"guest": GUESTS / "zcr-el12", "watcher": PROGRAMS / "sve-watcher"},
    module=PACKAGE / "repro/zcr_el12.c",
    wants_module=wants_module,
    variants=variants,
    curve=Curve(x="the guest's ZCR_EL1.LEN", y="host's vector length, bytes", points=points),
)
