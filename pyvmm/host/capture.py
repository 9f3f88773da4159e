"""Running a command inside an emulated host and returning its output."""

from __future__ import annotations

import contextlib
from typing import Final

from pyvmm.errors import HostError
from pyvmm.host.client import request_for
from pyvmm.host.connection import connected, ended_during_command, greet, no_answer
from pyvmm.host.grant import granted
from pyvmm.host.running import Running
from pyvmm.host.share import Needs
from pyvmm.host.wire import CHUNK, STDIN_WINDOW, Frame, FrameReader, WireError, pack

OUTPUT_TIMEOUT_S: Final = 60.0  # between two pieces of output
PORT_TIMEOUT_S: Final = 8.0  # usually 0.1 s; much longer on a busy machine


class CommandFailed(HostError):
    """A command that ended with an exit code other than 0; 128+n for signal n."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def capture(
    running: Running,
    argv: list[str],
    data: bytes,
    *,
    as_root: bool = False,
    control: bool = False,
    timeout_s: float = OUTPUT_TIMEOUT_S,
    needs: Needs | None = None,
) -> bytes:
    """Run ``argv`` in the host with ``data`` on its standard input; return its output.

    With ``as_root`` the command is root inside, for example to load a module.  A new file among the
    user's still belongs to the user, because QEMU runs as the user.  A command that controls VMs
    (``control``) may use a reserved port.  The command sees the files that it ``needs``, and by
    default none.

    Raises:
        CommandFailed: the command failed; the message has its standard error.
        HostError: the host ended, or does not answer.
    """
    if len(data) > STDIN_WINDOW:
        raise ValueError(f"{len(data)} bytes: at most {STDIN_WINDOW} can be sent")
    with (
        granted(running, needs) as grant,
        connected(running, PORT_TIMEOUT_S, control=control) as connection,
    ):
        request = request_for(running, argv, [], grant.tree)
        if as_root:
            request = request.replace(uid=0, gid=0, groups=[0])
        rest = greet(running, connection, request)
        connection.settimeout(timeout_s)
        frames = FrameReader()
        streams = {Frame.OUT: bytearray(), Frame.ERR: bytearray()}
        try:
            with contextlib.suppress(BrokenPipeError):  # it ended without reading
                connection.sendall(pack(Frame.STDIN, data) + pack(Frame.EOF))
            while True:
                for kind, payload in frames.feed(rest):
                    if kind is Frame.EXIT:
                        return _result(argv, payload[0], streams)
                    if kind in streams:
                        streams[kind] += payload
                rest = connection.recv(CHUNK)
                if not rest:
                    raise ended_during_command(running)
        except TimeoutError as error:
            raise no_answer(running) from error
        except (WireError, OSError) as error:
            raise ended_during_command(running) from error


def _result(argv: list[str], code: int, streams: dict[Frame, bytearray]) -> bytes:
    if code:
        said = streams[Frame.ERR].decode(errors="replace").strip()
        text = f"{' '.join(argv)} failed in the emulated host ({code}): {said}"
        raise CommandFailed(text, code)
    return bytes(streams[Frame.OUT])
