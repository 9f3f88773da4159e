"""The runs of a sweep: every set of vector lengths, number of vCPUs and host setting."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

from pyvmm.arm64 import vl
from pyvmm.base.records import Record
from pyvmm.errors import HostError, ImageError, UsageError
from pyvmm.host.settings import HostSettings

ALL = "all"  # every set that the host can give
NONE = "none"  # without SVE
BETWEEN = ";"  # sets and names of CPUs contain commas

# Placeholders for the guest's files in a run's command; a user cannot type a NUL.
IMAGE = "\0image"
INITRD = "\0initrd"

_UNUSUAL = re.compile(r"[^A-Za-z0-9.,=+-]+")
_LONGEST_NAME = 200  # a file's name has 255 bytes at most


class Guest(Record, kw_only=True):
    """The guest that every run of a sweep boots.

    ``image`` and ``initrd`` are paths on the command line. For runs on other machines ``files``
    holds the names and contents of both, the image first. ``options`` are further options of
    ``pyvmm run``.
    """

    image: str
    initrd: str | None = None
    options: tuple[str, ...] = ()
    timeout_s: float | None = None
    files: tuple[tuple[str, bytes], ...] = ()

    def packed(self, image: Path) -> Guest:
        """Return the guest with its files' contents; ``image`` is where its image lies.

        Raises: ImageError.
        """
        paths = [image] if self.initrd is None else [image, Path(self.initrd)]
        try:
            return self.replace(files=tuple((path.name, path.read_bytes()) for path in paths))
        except OSError as error:
            raise ImageError(f"{error.filename}: cannot be read: {error.strerror}") from error


class Run(Record, kw_only=True):
    """One guest on one machine; an executor pickles it and sends it to a worker.

    ``cpus`` is None for the default of ``pyvmm run``. The empty set means no SVE. ``command`` is
    the command line after ``pyvmm``, with IMAGE and INITRD in place of the files' paths.
    """

    number: int
    guest: Guest
    vls: vl.VlSet
    where: HostSettings
    cpus: int | None = None
    command: tuple[str, ...] = ()

    @property
    def lengths(self) -> str:
        """The set, as on the command line."""
        return vl.show(self.vls) or NONE

    @property
    def name(self) -> str:
        """The run's parameters in a line; every sweep of the same machines has the same names."""
        cpus = "" if self.cpus is None else f" cpus={self.cpus}"
        return f"sve={self.lengths}{cpus} {host_name(self.where)}"

    @property
    def log_name(self) -> str:
        """The name of the run's log, unique in its sweep."""
        return f"{self.number:03}-{_UNUSUAL.sub('_', self.name)[:_LONGEST_NAME]}.log"

    def arguments(self, image: str, initrd: str | None) -> list[str]:
        """Return the command line after ``pyvmm``, with these paths of the files."""
        paths = {IMAGE: image, INITRD: initrd or ""}
        return [paths.get(word, word) for word in self.command]


def host_name(where: HostSettings) -> str:
    """Return a short name for host settings."""
    if where.kind == "local":
        return where.kind
    machine = f" machine={where.machine}" if where.machine else ""
    return f"kernel={where.kernel} cpu={where.cpu}{machine}"


def alternatives(texts: Iterable[str], subject: str, separators: str = BETWEEN) -> list[str]:
    """Split texts into values; each once, in order. Errors begin with ``subject``.

    Raises: UsageError, for an empty value.
    """
    values = []
    for text in texts:
        values += [part.strip() for part in re.split(f"[{separators}]", text)]
    if "" in values:
        raise UsageError(
            f"{subject}: a value is empty", hint=f"separate values by {' or '.join(separators)}"
        )
    return list(dict.fromkeys(values))


def parse_sets(texts: Iterable[str]) -> list[vl.VlSet | None]:
    """Read sets: the empty one for ``none``, and None for ``all``.

    Raises: UsageError.
    """
    words: dict[str, vl.VlSet | None] = {ALL: None, NONE: vl.NO_SVE}
    sets = [
        words[text] if text in words else vl.parse(text, subject="`sets`")
        for text in alternatives(texts, "`sets`")
    ]
    if not sets:
        raise UsageError("`sets` is missing", hint="`sets`=all; `sets`='128;128,256'")
    return list(dict.fromkeys(sets))


def parse_cpus(texts: Iterable[str]) -> list[int | None]:
    """Read numbers of vCPUs; without numbers, return only None.

    Raises: UsageError.
    """
    values = alternatives(texts, "`cpus`", ",;")
    for value in values:
        if not re.fullmatch("[1-9][0-9]{0,3}", value):
            raise UsageError(f"`cpus`={value}: not a number of vCPUs", hint="`cpus`=1,2,4")
    numbers: list[int | None] = [int(value) for value in values]
    return numbers or [None]


def sets_of(
    wanted: Sequence[vl.VlSet | None], host: vl.VlSet, where: HostSettings
) -> list[vl.VlSet]:
    """Return the sets of a sweep on a host with those lengths, each once.

    Raises: HostError, for a set that the host cannot give.
    """
    sets: list[vl.VlSet] = []
    for asked in wanted:
        if asked is None and not host:
            raise HostError(
                f"`sets`=all: {host_name(where)} has no SVE",
                hint="`sets`=none runs the guest without",
            )
        if asked and (reason := vl.why_not(asked, host)):
            raise HostError(
                f"`sets`={vl.show(asked)}: {reason} ({host_name(where)})",
                hint=vl.advice(asked, host, "`sets`"),
            )
        sets += vl.legal_sets(host) if asked is None else [asked]
    return list(dict.fromkeys(sets))


def plan(
    guest: Guest,
    wanted: Sequence[vl.VlSet | None],
    cpus: Sequence[int | None],
    hosts: Mapping[HostSettings, vl.VlSet],
    command: Callable[[Run], tuple[str, ...]],
) -> list[Run]:
    """Return every run, grouped by host, with the command line that ``command`` makes.

    Raises: HostError, for a set that a host cannot give.
    """
    chosen = [
        (where, number, vls)
        for where, lengths in hosts.items()
        for number, vls in product(cpus, sets_of(wanted, lengths, where))
    ]
    runs = [
        Run(number=number, guest=guest, vls=vls, where=where, cpus=vcpus)
        for number, (where, vcpus, vls) in enumerate(chosen, start=1)
    ]
    return [run.replace(command=command(run)) for run in runs]
