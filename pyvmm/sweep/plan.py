"""Which runs a sweep is made of: sets of vector lengths, numbers of vCPUs, host settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from pyvmm.arm64 import vl
from pyvmm.errors import HostError, ImageError, UsageError
from pyvmm.host.settings import HostSettings

ALL = "all"  # every set a host can give
NONE = "none"  # without SVE
BETWEEN = ";"  # a comma stands within a set, and within a CPU's name

# Stand for the guest's files in a run's command; no word of the user's has a NUL.
IMAGE = "\0image"
INITRD = "\0initrd"

_UNUSUAL = re.compile(r"[^A-Za-z0-9.,=+-]+")
_LONGEST_NAME = 200  # of the 255 bytes a file's name can have


@dataclass(frozen=True, slots=True)
class Blob:
    """A file that travels with a run."""

    name: str
    data: bytes = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> Blob:
        """The file at ``path``.

        Raises: ImageError.
        """
        try:
            return cls(path.name, path.read_bytes())
        except OSError as error:
            raise ImageError(f"{path}: cannot be read: {error.strerror}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """What every run of a sweep boots, and how.

    ``image`` and ``initrd`` are as ``pyvmm run`` takes them. ``files`` holds both where they
    travel, the image first. ``options`` are further ones of ``pyvmm run``.
    """

    image: str
    initrd: str | None = None
    options: tuple[str, ...] = ()
    timeout_s: float | None = None
    files: tuple[Blob, ...] = ()

    def packed(self, image: Path) -> Guest:
        """The same with its files aboard; ``image`` is where the image lies."""
        paths = [image] if self.initrd is None else [image, Path(self.initrd)]
        return replace(self, files=tuple(map(Blob.read, paths)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One guest on one machine: it can be pickled, and done wherever pyvmm is.

    ``cpus`` is None for what ``pyvmm run`` takes by itself. The empty set is no SVE. ``command``
    is its command line after ``pyvmm``, with IMAGE and INITRD in place of the files' paths.
    """

    number: int
    guest: Guest
    vls: vl.VlSet
    where: HostSettings
    cpus: int | None = None
    command: tuple[str, ...] = ()

    @property
    def lengths(self) -> str:
        """Its set, as the user may write it."""
        return vl.show(self.vls) or NONE

    @property
    def name(self) -> str:
        """What sets it apart, in a line: the same in every sweep of the same machines."""
        cpus = "" if self.cpus is None else f" cpus={self.cpus}"
        return f"sve={self.lengths}{cpus} {host_name(self.where)}"

    @property
    def log_name(self) -> str:
        """The name of its log: no other run of the sweep has it."""
        return f"{self.number:03}-{_UNUSUAL.sub('_', self.name)[:_LONGEST_NAME]}.log"

    def arguments(self, image: str, initrd: str | None) -> list[str]:
        """Return its command line after ``pyvmm``, with its files' paths as they are now."""
        paths = {IMAGE: image, INITRD: initrd or ""}
        return [paths.get(word, word) for word in self.command]


def host_name(where: HostSettings) -> str:
    """Host settings in a word or two."""
    return where.kind if where.kind == "local" else f"kernel={where.kernel} cpu={where.cpu}"


def alternatives(texts: Iterable[str], subject: str, separators: str = BETWEEN) -> list[str]:
    """Split texts into values; each once, in order. ``subject`` is what an error names.

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
    """Read numbers of vCPUs; None alone where there are none.

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
    """The sets of a sweep on a host with those lengths, each once.

    Raises: HostError, for a set the host cannot give.
    """
    sets: list[vl.VlSet] = []
    for asked in wanted:
        if asked is None and not host:
            raise HostError(
                f"`sets`=all: {host_name(where)} has no SVE",
                hint="`sets`=none runs the guest without",
            )
        if asked:
            _check(asked, host, where)
        sets += vl.legal_sets(host) if asked is None else [asked]
    return list(dict.fromkeys(sets))


def plan(
    guest: Guest,
    wanted: Sequence[vl.VlSet | None],
    cpus: Sequence[int | None],
    hosts: Mapping[HostSettings, vl.VlSet],
    command: Callable[[Run], tuple[str, ...]],
) -> list[Run]:
    """Return every run, those of a host side by side, with the commands that ``command`` makes.

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
    return [replace(run, command=command(run)) for run in runs]


def _check(asked: vl.VlSet, host: vl.VlSet, where: HostSettings) -> None:
    if reason := vl.why_not(asked, host):
        raise HostError(
            f"`sets`={vl.show(asked)}: {reason} ({host_name(where)})",
            hint=vl.advice(asked, host, "`sets`"),
        )
