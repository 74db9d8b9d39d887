"""Streams that people read: no text steers a terminal, and a reader who has gone is no error."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)?|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
NAMED = re.compile("[\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What turns the direction of writing (a name with it reads as another), and bytes of a name that are no text."""
BREAKS = re.compile("[\t\n\u2028\u2029]")
GONE = (errno.EIO, errno.EPIPE, errno.ESHUTDOWN)
"""A terminal that was closed; a pipe whose reader has read enough (`| head -1`)."""


def safe(text: str) -> str:
    """Text from data or models: control sequences go, what turns the writing or is no text is named."""
    return NAMED.sub(_named, ESCAPES.sub("", text))


def on_one_line(text: str) -> str:
    """`safe`, with tabs and line ends named: a cell or a name that cannot look like a line of its own."""
    return BREAKS.sub(_named, safe(text))


def _named(found: re.Match[str]) -> str:
    return {"\t": "\\t", "\n": "\\n"}.get(found[0], f"\\u{ord(found[0]):04x}")


class Heard:
    """A stream whose reader may go away: writing to it is then no error, and a run goes on to its end."""

    lost: OSError | None = None
    """What kept the stream from writing; what others have swallowed is still here."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def raw(self) -> TextIO:
        """The stream itself."""
        return self._stream

    def write(self, text: str) -> int:
        with self._gone_is_fine():
            try:
                self._stream.write(text)
            except UnicodeEncodeError:  # a terminal that knows few characters
                encoding = self._stream.encoding or "ascii"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with self._gone_is_fine():
            self._stream.flush()

    @contextmanager
    def _gone_is_fine(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _to_nowhere(self._stream)  # what is still in its buffer would be an error again when Python ends
            if error.errno not in GONE:
                self.lost = error
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Escaping(Heard):
    """A stream whose text loses its control sequences; everything else is the stream's own."""

    def write(self, text: str) -> int:
        return super().write(safe(text))


class Barless(Heard):
    """A stream without the bars of other libraries, which write over their own line."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._in_bar = False

    def write(self, text: str) -> int:
        of_bar = text.startswith("\r") or (self._in_bar and not text.strip())
        self._in_bar = of_bar and "\n" not in text
        return len(text) if of_bar else super().write(text)


def _to_nowhere(stream: TextIO) -> None:
    with suppress(OSError, ValueError, AttributeError):  # one without a file descriptor, or closed
        number = stream.fileno()
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, number)
        os.close(silence)
