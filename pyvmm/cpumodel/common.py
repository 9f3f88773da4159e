"""The best CPU model that several hosts can give, and what each host loses by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pyvmm.arm64 import idrules, vl
from pyvmm.arm64.bits import Field
from pyvmm.base.records import Record
from pyvmm.cpumodel.fit import value_of
from pyvmm.cpumodel.host import CpuHost
from pyvmm.cpumodel.model import CpuModel


class Loss(Record):
    """A field, or another part of the CPU, in which the model gives less than the host has."""

    name: str
    has: str
    model: str


class Obstacle(Record):
    """A part in which hosts differ, and no model helps: no value is safe, or KVM cannot set it."""

    name: str
    reason: str
    harmless: bool = False


class Common(Record, kw_only=True):
    """The model, the losses by host, and what keeps guests from moving between all hosts."""

    model: CpuModel
    losses: dict[str, tuple[Loss, ...]]
    obstacles: tuple[Obstacle, ...]

    @property
    def is_whole(self) -> bool:
        """Whether a guest with the model can move between all hosts."""
        return all(obstacle.harmless for obstacle in self.obstacles)


def common(hosts: Mapping[str, CpuHost]) -> Common:
    """Return the best CPU that all of the hosts can give."""
    fields: dict[str, int] = {}
    obstacles: list[Obstacle] = []
    losses: dict[str, list[Loss]] = {name: [] for name in hosts}
    for register in _registers(hosts):
        for field in idrules.fields(register):
            if idrules.is_by_feature(register, field.name):
                continue
            values = {name: value_of(host, register, field) for name, host in hosts.items()}
            best = _best(register, field, values)
            name = f"{register}.{field.name}"
            fixed = [host for host, value in values.items()
                     if value != best and not hosts[host].can_write(register, field)]  # fmt: skip
            if best is None or fixed:
                obstacles.append(_obstacle(register, field, values, fixed))
                continue
            fields[name] = best
            for host, value in values.items():
                if value != best:
                    shown = (idrules.show(register, field, v) for v in (value, best))
                    losses[host].append(Loss(name, *shown))
    vls = _lengths(hosts, losses, obstacles)
    pauth = _pauth(hosts, losses)
    obstacles += _clocks(hosts)
    model = CpuModel(fields=fields, vls=vls, pauth=pauth, hosts=tuple(hosts))
    return Common(
        model=model,
        losses={name: tuple(lost) for name, lost in losses.items()},
        obstacles=tuple(obstacles),
    )


def _registers(hosts: Mapping[str, CpuHost]) -> list[str]:
    """Return the ID registers of all hosts, in the order of their encodings."""
    names = {name for host in hosts.values() for name in host.registers}
    return [name for name in sorted(names, key=_encoding) if idrules.is_identification(name)]


def _encoding(name: str) -> int:
    from pyvmm.arm64 import sysregs

    return sysregs.ENCODINGS.get(name, 0)


def _best(register: str, field: Field, values: Mapping[str, int]) -> int | None:
    """Return the value that every host keeps; None if there is none."""
    best: int | None = None
    for number, value in enumerate(values.values()):
        best = value if number == 0 else idrules.combined(register, field, best or 0, value)
        if best is None:
            return None
    return best


def _obstacle(register: str, field: Field, values: Mapping[str, int], fixed: list[str]) -> Obstacle:
    shown = ", ".join(
        f"{host} {idrules.show(register, field, value)}" for host, value in values.items()
    )
    harmless = HARMLESS.get(f"{register}.{field.name}") or HARMLESS.get(register, "")
    why = f"KVM of {', '.join(fixed)} cannot change it" if fixed else "no value is safe for all"
    return Obstacle(
        f"{register}.{field.name}", f"{shown}: {harmless or why}", harmless=bool(harmless)
    )


# Differences that a guest which runs already does not notice.
HARMLESS = {
    "CLIDR_EL1": "the guest uses cache geometry as a hint only",
}


def _lengths(
    hosts: Mapping[str, CpuHost],
    losses: dict[str, list[Loss]],
    obstacles: list[Obstacle],
) -> vl.VlSet:
    """Return the largest set of vector lengths that each host can give; empty means no SVE."""
    sets = vl.legal_sets(*(host.vls for host in hosts.values()))
    best = max(sets, key=len, default=vl.NO_SVE)
    for name, host in hosts.items():
        if host.vls != best:
            has, left = vl.show(host.vls) or "none", vl.show(best) or "none"
            losses[name].append(Loss("SVE vector lengths", has, left))
    return best


def _pauth(hosts: Mapping[str, CpuHost], losses: dict[str, list[Loss]]) -> bool:
    """Return whether all hosts have the same pointer authentication.

    A host cannot use keys and signatures of another algorithm: then no guest gets the feature.
    """
    kinds = {host.pauth for host in hosts.values()}
    if len(kinds) == 1:
        return bool(kinds.pop())
    for name, host in hosts.items():
        if host.pauth:
            losses[name].append(Loss("pointer authentication", host.pauth, "none"))
    return False


def _clocks(hosts: Mapping[str, CpuHost]) -> Iterator[Obstacle]:
    """Yield the counters' frequencies, if they differ."""
    hz = {name: host.counter_hz for name, host in hosts.items()}
    if len(set(hz.values())) > 1:
        shown = ", ".join(f"{name} {value} Hz" for name, value in hz.items())
        yield Obstacle("counter frequency", f"{shown}: the guest's time would change its speed")
