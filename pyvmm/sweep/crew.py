"""Who does the runs: processes of this machine, or the workers of a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Event
from typing import Any, TypeVar

from pyvmm.errors import HostError, UsageError

_Work = TypeVar("_Work")
_Answer = TypeVar("_Answer")

CONNECT_S = 10.0


class Crew:
    """An executor, and how to end what it does.

    ``stop``, where there is one, goes to each function, which is to end when it is set. Without
    one, what has begun is left to end by itself, and nobody waits for it.
    """

    def __init__(self, executor: Executor, stop: Event | None = None) -> None:
        self._executor = executor
        self._stop = stop

    def submit(self, function: Callable[..., _Answer], work: _Work) -> Future[_Answer]:
        """Have a module-level function do a piece of work, which can be pickled."""
        if self._stop is not None:
            function = partial(function, stop=self._stop)
        return self._executor.submit(function, work)

    def end(self, futures: set[Future[_Answer]]) -> None:
        """Begin no more of these, and end those that run."""
        for future in futures:
            future.cancel()
        if self._stop is not None:
            self._stop.set()


@contextmanager
def local(jobs: int) -> Iterator[Crew]:
    """So many at a time on this machine; each is a process, which a thread waits for."""
    stop = Event()
    with ThreadPoolExecutor(jobs, thread_name_prefix="sweep") as executor:
        try:
            yield Crew(executor, stop)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            stop.set()
            raise


@contextmanager
def dask(address: str) -> Iterator[Crew]:
    """The workers of the Dask cluster whose scheduler is at ``address``.

    Raises: HostError, where there is none, or this Python has no distributed; UsageError.
    """
    with _client(address) as client:  # which takes back what is still asked for at its end
        yield Crew(client.get_executor(pure=False))  # the same run again is a new one


def _client(address: str) -> Any:
    try:
        from distributed import Client
        from distributed.comm import resolve_address
    except ImportError as error:
        raise HostError(
            f"`scheduler`={address}: this Python has no Dask cluster's client ({error})",
            hint="pip install 'pyvmm-arm64[dask]'",
        ) from error
    try:
        resolve_address(address)  # a Client that finds it wrong itself ends with a traceback
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except ValueError as error:
        raise UsageError(
            f"`scheduler`={address}: {error}", hint="for example `scheduler`=tcp://10.0.0.1:8786"
        ) from error
    except OSError as error:
        raise HostError(
            f"`scheduler`={address}: no scheduler answers there within {CONNECT_S:g} s",
            hint="`dask scheduler` starts one, and `dask worker ADDRESS --nthreads 1` a worker",
        ) from error
    return client
