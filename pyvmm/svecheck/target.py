"""The host under test, and what it may lack."""

from __future__ import annotations

from dataclasses import dataclass

from pyvmm.arm64.vl import VlSet


@dataclass(frozen=True, slots=True)
class Target:
    """The lengths that the host's KVM offers, and those its own programs have, in bits."""

    vls: VlSet
    own: VlSet


class Skip(Exception):
    """What a case needs and this host lacks."""
