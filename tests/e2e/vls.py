"""Hosts with different vector lengths, and the sets that each must give and refuse."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.e2e.conftest import FIRST_S, Pyvmm, message

POWERS = (128, 256, 512, 1024, 2048)
EVERY = tuple(range(128, 2049, 128))


@dataclass(frozen=True)
class Host:
    """An emulated CPU and the vector lengths it has, in bits."""

    cpu: str
    lengths: tuple[int, ...]

    @property
    def legal(self) -> list[tuple[int, ...]]:
        """Return the sets that KVM accepts: each holds every host length below its largest."""
        return [self.lengths[: n + 1] for n in range(len(self.lengths))]


ONE = Host("max,sve-max-vq=1", EVERY[:1])
TWO = Host("max,sve-max-vq=2", EVERY[:2])
FOUR = Host("max,sve-max-vq=4", EVERY[:4])
SIXTEEN = Host("max,sve-max-vq=16", EVERY)
HOLE = Host("max,sve-max-vq=4,sve384=off", (128, 256, 512))
NONE = Host("max,sve=off", ())

# Wrong on every machine: exit code 2, and words of the message.
NONSENSE = {
    "": "the set is empty",
    "0": "0 is not a vector length",
    "100": "100 is not a multiple of 128",
    "-128": "-128 is negative",
    "1,2": "128-bit units and would be --sve-vls=128,256",
    "16,32": "bytes, as prctl and vlset take them, and would be --sve-vls=128,256",
    "128,128": "128 is given twice",
    "4096": "4096 is longer than SVE's longest",
    "all": "'all' is not a vector length",
    "128,": "missing after the last comma",
}


def show(lengths: tuple[int, ...], separator: str = ",") -> str:
    return separator.join(map(str, lengths))


def illegal(host: Host) -> list[tuple[int, ...]]:
    """Return well-formed sets that this host cannot give."""
    candidates = [(256,), (128, 512), (128, 256, 384), (128, 384), (512,), (2048,), (128, 2048),
                  EVERY[:3], EVERY[:15], EVERY, POWERS]  # fmt: skip
    return [lengths for lengths in candidates if lengths not in host.legal]


def check_legal(pyvmm: Pyvmm, host: Host, *options: str) -> int:
    """Check that a guest sees exactly each legal set; return their number."""
    where = ("--host-cpu", host.cpu, *options)
    for lengths in host.legal:
        done = pyvmm("run", "sve-vls", f"--sve-vls={show(lengths)}", *where, timeout=FIRST_S)

        assert done.stdout.splitlines()[-1:] == [f"SVE vector lengths: {show(lengths, ' ')}"], done
        assert done.returncode == 0, done
    done = pyvmm("run", "sve-vls", *where, timeout=FIRST_S)
    whole = f"SVE vector lengths: {show(host.lengths, ' ')}" if host.lengths else NO_SVE
    assert done.stdout.splitlines()[-1:] == [whole], done
    assert done.returncode == 0, done
    return len(host.legal)


NO_SVE = "SVE: not implemented"


def check_illegal(pyvmm: Pyvmm, host: Host, *options: str, at_most: int = 99) -> int:
    """Check that every other set is refused with a hint of legal sets; return their number."""
    where = ("--host-cpu", host.cpu, *options)
    tried = illegal(host)[:at_most]
    for lengths in tried:
        done = pyvmm("run", "sve-vls", f"--sve-vls={show(lengths)}", *where, timeout=FIRST_S)

        assert message(done).startswith(f"pyvmm: --sve-vls={show(lengths)}: "), done
        assert done.returncode == 3, done
        check_hint(done.stderr, host)
    return len(tried)


def check_nonsense(pyvmm: Pyvmm, host: Host, *options: str) -> int:
    """Check that sets which are wrong on every machine are refused."""
    where = ("--host-cpu", host.cpu, *options)
    for text, words in NONSENSE.items():
        done = pyvmm("run", "sve-vls", f"--sve-vls={text}", *where, timeout=FIRST_S)

        assert words in message(done), done
        assert done.returncode == 2, done
        check_hint(done.stderr, host)
    return len(NONSENSE)


def check_hint(said: str, host: Host) -> None:
    """Check that the hint names the host's lengths, and only sets that it can give."""
    hint = said.splitlines()[1]
    if not host.lengths:
        assert "leave " in hint, said
        return
    assert f"(which has {show(host.lengths)})" in hint, said
    offered = re.findall(r"--sve-vls=([\d,]+)", hint)
    assert offered, said
    assert {tuple(map(int, text.split(","))) for text in offered} <= set(host.legal), said
