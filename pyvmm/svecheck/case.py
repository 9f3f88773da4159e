"""Cases, the promises they check, and their results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from types import ModuleType

from pyvmm.base.records import Record
from pyvmm.svecheck.bench import Bench, SveHost


class Verdict(StrEnum):
    """The verdict on a case."""

    OK = "ok"
    DIFFERS = "differs"
    KNOWN = "known"
    SKIPPED = "skipped"


class Promise(Record):
    """A promise of a document, in our words, and its place."""

    says: str
    document: str
    section: str

    @property
    def source(self) -> str:
        """The document and the section."""
        return f"{self.document}, {self.section}"


class Known(Record):
    """An outcome that differs on purpose, and the version and commit of kernels that have it."""

    outcome: str
    which: str


Expected = str | Callable[[SveHost], str]
Act = Callable[[Bench], str]


class Case(Record):
    """One action, and the outcome that a document promises."""

    name: str
    done: str
    promise: Promise
    expected: Expected
    act: Act
    known: tuple[Known, ...] = ()

    def expects(self, host: SveHost) -> str:
        """Return the promised outcome on a host."""
        return self.expected if isinstance(self.expected, str) else self.expected(host)


class CaseResult(Record):
    """The result of a case; ``why`` is the reason of a skip or a known difference."""

    case: Case
    verdict: Verdict
    expected: str
    got: str
    why: str = ""
    seconds: float = 0.0


def case(promise: Promise, expected: Expected, *known: Known) -> Callable[[Act], Case]:
    """Make a case of a function: module and name name the case, the docstring is the action."""

    def make(act: Act) -> Case:
        subject = act.__module__.rpartition(".")[2]
        done = (act.__doc__ or "").strip().rstrip(".")
        name = f"{subject}/{act.__name__.replace('_', '-')}"
        return Case(name, " ".join(done.split()), promise, expected, act, known)

    return make


def cases_of(module: ModuleType) -> Iterator[Case]:
    """Yield the cases of a module, single or in tuples, in the order of its lines."""
    for value in vars(module).values():
        if isinstance(value, Case):
            yield value
        elif isinstance(value, tuple):
            yield from (item for item in value if isinstance(item, Case))
