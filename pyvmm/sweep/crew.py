"""Executors of runs: processes on this machine, or the workers of a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Event
from typing import Any, TypeVar

from pyvmm.errors import HostError, UsageError

_Work = TypeVar("_Work")
_Returned = TypeVar("_Returned")

CONNECT_S = 10.0


class Crew:
    """An executor, and the means to end its runs early.

    Each function gets ``stop`` and ends when it is set. If ``stop`` is None, a function that has
    begun runs to its own end, and the sweep does not wait for it.
    """

    def __init__(self, executor: Executor, stop: Event | None = None) -> None:
        self._executor = executor
        self._stop = stop

    def submit(self, function: Callable[..., _Returned], work: _Work) -> Future[_Returned]:
        """Submit work, which is pickled, to a module-level function."""
        if self._stop is not None:
            function = partial(function, stop=self._stop)
        return self._executor.submit(function, work)

    def end(self, futures: set[Future[_Returned]]) -> None:
        """Cancel the futures, and end those that run."""
        for future in futures:
            future.cancel()
        if self._stop is not None:
            self._stop.set()


@contextmanager
def local(jobs: int) -> Iterator[Crew]:
    """Run ``jobs`` at a time on this machine; a thread waits for the process of each."""
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
    """Use the workers of the Dask cluster whose scheduler is at ``address``.

    Raises: HostError, if no scheduler answers or distributed is not installed; UsageError.
    """
    with _client(address) as client:  # at its end it cancels unfinished runs
        yield Crew(client.get_executor(pure=False))  # pure=False: never reuse an earlier result


def _client(address: str) -> Any:
    try:
        from distributed import Client
        from distributed.comm import resolve_address
    except ImportError as error:
        raise HostError(
            f"`scheduler`={address}: this Python lacks Dask's client ({error})",
            hint="pip install 'pyvmm-arm64[dask]'",
        ) from error
    try:
        resolve_address(address)  # Client itself prints a traceback for a wrong address
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
