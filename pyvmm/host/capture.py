"""Running a command inside an emulated host for what it prints."""

from __future__ import annotations

import contextlib
from typing import Final

from pyvmm.errors import HostError
from pyvmm.host.client import request_for
from pyvmm.host.connection import connected, ended_in_the_middle, greet, no_answer
from pyvmm.host.running import Running
from pyvmm.host.wire import CHUNK, STDIN_WINDOW, Frame, FrameReader, WireError, pack

PATIENCE_S: Final = 60.0  # between one piece of output and the next
ANSWER_S: Final = 10.0  # usually a tenth of a second; of a machine that is busy, many times that


class CommandFailed(HostError):
    """The command ended with another exit code than 0: ``code``; 128+n for signal n."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def capture(
    running: Running,
    argv: list[str],
    data: bytes,
    *,
    as_root: bool = False,
    patience_s: float | None = None,
) -> bytes:
    """What ``argv`` prints in the host that gets ``data`` (256 KiB at most) on standard input.

    ``as_root`` is root inside, as loading a module wants; the user's files are the user's all
    the same, since it is the user's own QEMU that touches them.

    Raises:
        CommandFailed: it fails, with its own words.
        HostError: the host ended, or does not answer.
    """
    if len(data) > STDIN_WINDOW:
        raise ValueError(f"{len(data)} bytes are more than may be on their way unread")
    with connected(running, ANSWER_S) as connection:
        request = request_for(running, argv, running.description, [])
        if as_root:
            request = request.replace(uid=0, gid=0, groups=[0])
        rest = greet(running, connection, request)
        connection.settimeout(PATIENCE_S if patience_s is None else patience_s)
        frames = FrameReader()
        streams = {Frame.OUT: bytearray(), Frame.ERR: bytearray()}
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended without reading
                connection.sendall(pack(Frame.STDIN, data) + pack(Frame.EOF))
            while True:
                for kind, payload in frames.feed(rest):
                    if kind is Frame.EXIT:
                        return _result(argv, payload[0], streams)
                    if kind in streams:
                        streams[kind] += payload
                rest = connection.recv(CHUNK)
                if not rest:
                    raise ended_in_the_middle(running)
        except TimeoutError as error:
            raise no_answer(running) from error
        except (WireError, OSError) as error:
            raise ended_in_the_middle(running) from error


def _result(argv: list[str], code: int, streams: dict[Frame, bytearray]) -> bytes:
    if code:
        said = streams[Frame.ERR].decode(errors="replace").strip()
        text = f"{' '.join(argv)} failed in the emulated host ({code}): {said}"
        raise CommandFailed(text, code)
    return bytes(streams[Frame.OUT])
