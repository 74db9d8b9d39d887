"""Terminals to write to, and what someone sees there in the end."""

import contextlib
import fcntl
import os
import pty
import struct
import termios
import threading
from collections.abc import Iterator
from typing import TextIO

import pyte


def read_all(reader: int) -> bytes:
    """Everything a closed terminal was sent; it arrives in pieces, some of them late."""
    pieces = []
    with contextlib.suppress(OSError):  # EIO: the other end is closed and nothing is left
        while piece := os.read(reader, 65536):
            pieces.append(piece)
    os.close(reader)
    return b"".join(pieces)


@contextlib.contextmanager
def terminal(monkeypatch, columns: int = 80) -> Iterator[TextIO]:
    """A stream that is a terminal of so many columns; `sent()` closes it and gives what was written to it."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    pieces: list[bytes] = []
    listener = threading.Thread(target=lambda: pieces.append(read_all(reader)))
    listener.start()
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        stream.sent = lambda: (stream.close(), listener.join(), pieces[0])[2]
        yield stream
    listener.join()


def screen_of(sent: bytes, columns: int = 80, lines: int = 24) -> list[str]:
    """The lines that someone sees in the end, as a terminal shows them."""
    screen = pyte.Screen(columns, lines)
    pyte.ByteStream(screen).feed(sent)
    return [line.rstrip() for line in screen.display if line.strip()]
