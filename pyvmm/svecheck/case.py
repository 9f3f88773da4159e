"""What a case is, what it is held against, and how one turned out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from types import ModuleType

from pyvmm.base.records import Record
from pyvmm.svecheck.bench import Bench, SveHost


class Verdict(StrEnum):
    """How a case turned out."""

    OK = "ok"
    DIFFERS = "differs"
    KNOWN = "known"
    SKIPPED = "skipped"


class Promise(Record):
    """What a document says, in our words, and where."""

    says: str
    document: str
    section: str

    @property
    def source(self) -> str:
        """The document and the place in it."""
        return f"{self.document}, {self.section}"


class Known(Record):
    """Another outcome that kernels have on purpose, and which ones: a version and its commit."""

    outcome: str
    which: str


Expected = str | Callable[[SveHost], str]
Act = Callable[[Bench], str]


class Case(Record):
    """One thing to do, and the outcome that a document promises."""

    name: str
    done: str
    promise: Promise
    expected: Expected
    act: Act
    known: tuple[Known, ...] = ()

    def expects(self, host: SveHost) -> str:
        """The promised outcome on that host."""
        return self.expected if isinstance(self.expected, str) else self.expected(host)


class CaseResult(Record):
    """How a case turned out, and in what words; ``why`` is for what is not simply ok."""

    case: Case
    verdict: Verdict
    expected: str
    got: str
    why: str = ""
    seconds: float = 0.0


def case(
    promise: Promise, expected: Expected, *known: Known, subject: str = ""
) -> Callable[[Act], Case]:
    """Make a case of a function: its name is the case's, its docstring what is done.

    The subject is the function's module, unless given.
    """

    def make(act: Act) -> Case:
        room = subject or act.__module__.rpartition(".")[2]
        done = (act.__doc__ or "").strip().rstrip(".")
        name = f"{room}/{act.__name__.replace('_', '-')}"
        return Case(name, " ".join(done.split()), promise, expected, act, known)

    return make


def cases_of(module: ModuleType) -> Iterator[Case]:
    """The cases a module defines, single or in tuples, from its first line to its last."""
    for value in vars(module).values():
        if isinstance(value, Case):
            yield value
        elif isinstance(value, tuple):
            yield from (item for item in value if isinstance(item, Case))
