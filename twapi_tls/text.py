"""The text layer: encoding, line ends and the end-of-file character.

Tcl's rules: the input and the output side each have a translation
(``auto``, ``binary``, ``lf``, ``cr``, ``crlf``) and an end-of-file
character; both sides share the encoding. ``None`` as encoding means bytes,
which pass through here as Latin-1 where line ends need work, one character
a byte.

Bytes are decoded ahead of their use. When the settings change, or somebody
reads raw bytes, what was decoded and not used goes back, byte for byte:
HTTP's text headers before a binary body are the usual case.
"""

from __future__ import annotations

import codecs
import io
from collections import deque

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Final

TRANSLATIONS: Final = ("auto", "binary", "lf", "cr", "crlf")


class TextSettings:
    """What the text layer is told; a value, compared and copied by field.

    encoding: a codec's name, or None for bytes.
    input, output: translations. eof_in, eof_out: "" or one ASCII character.
    """

    __slots__ = ("encoding", "eof_in", "eof_out", "input", "output")

    def __init__(
        self,
        encoding: str | None = None,
        input: str = "binary",
        output: str = "binary",
        eof_in: str = "",
        eof_out: str = "",
    ) -> None:
        self.encoding = encoding
        self.input = input
        self.output = output
        self.eof_in = eof_in
        self.eof_out = eof_out

    def copy(self) -> TextSettings:
        """An equal, independent object."""
        return TextSettings(self.encoding, self.input, self.output, self.eof_in, self.eof_out)

    @property
    def raw_input(self) -> bool:
        """Do bytes from the channel reach the reader untouched?"""
        return self.encoding is None and self.input in ("binary", "lf") and not self.eof_in

    @property
    def raw_output(self) -> bool:
        """Do bytes of the writer reach the channel untouched?"""
        return self.encoding is None and self.output in ("binary", "lf")


def check_encoding(value: object) -> str | None:
    """The canonical name of a codec, or None for bytes.

    Raises LookupError for an unknown one, TypeError for no string.
    """
    if value is None or value == "binary":
        return None
    if not isinstance(value, str):
        raise TypeError(f"encoding must be a string or None, not {value!r}")
    found = codecs.lookup(value)
    if not getattr(found, "_is_text_encoding", True):
        raise LookupError(f"{value!r} is not a text encoding")
    return found.name


def check_translation(value: object) -> tuple[str, str]:
    """(input, output) of a translation or a pair of them; ValueError."""
    pair = (value, value) if isinstance(value, str) else value
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"translation must be a name or a pair of names, not {value!r}")
    for item in pair:
        if item not in TRANSLATIONS:
            raise ValueError(f"bad translation {item!r}: must be one of {', '.join(TRANSLATIONS)}")
    return str(pair[0]), str(pair[1])


def check_eofchar(value: object) -> tuple[str, str]:
    """(input, output) of an end-of-file character or a pair; ValueError."""
    if value is None:
        value = ""
    pair = (value, value) if isinstance(value, str) else value
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"eofchar must be a character or a pair, not {value!r}")
    for item in pair:
        if not isinstance(item, str) or len(item) > 1 or item > "\x7f" or item == "\0":
            raise ValueError(f"bad eofchar {item!r}: must be one character, 0x01 to 0x7f, or empty")
    return pair[0], pair[1]


class TextReader:
    """Bytes in, lines or characters out.

    ``feed`` what the channel gave, ``feed_eof`` at its end; ``line`` and
    ``take`` answer None while too little is there. Results are str, or
    bytes if the encoding is None. Undecodable input raises
    UnicodeDecodeError once the good characters before it are used up.
    """

    def __init__(self, settings: TextSettings) -> None:
        self._bytes = settings.encoding is None
        self._codec = settings.encoding or "latin-1"
        self._decoder = codecs.getincrementaldecoder(self._codec)("strict")
        self._mode = "lf" if settings.input == "binary" else settings.input
        self._eofchar = settings.eof_in
        # One entry a feed, oldest first: (codec state, bytes that were
        # still inside the codec, new bytes, characters they gave).
        self._chunks: deque[tuple[int, bytes, bytes, int]] = deque()
        self._used = 0  # characters used of the first chunk
        self._text = ""
        self._pos = 0
        self._scan = 0
        self._skip_lf = False
        self._end = False
        self._stopped = False  # the end-of-file character was met
        self._bad: UnicodeDecodeError | None = None

    @property
    def ended(self) -> bool:
        """Nothing will come any more (the channel's end, or eofchar)."""
        return self._end or self._stopped

    @property
    def empty(self) -> bool:
        """No decoded character waits."""
        return self._pos >= len(self._text)

    def feed(self, data: bytes) -> None:
        """Decodes more; cheap when nothing of the old is left."""
        if self._stopped:
            # Past eofchar: kept only to be given back by unread().
            self._chunks.append((0, b"", data, 0))
            return
        self._decode(data, False)

    def feed_eof(self) -> None:
        """The channel ended: a half character is an error now."""
        if not self._end and not self._stopped:
            self._decode(b"", True)
        self._end = True

    def _decode(self, data: bytes, final: bool) -> None:
        inside, flags = self._decoder.getstate()
        try:
            text = self._decoder.decode(data, final)
        except UnicodeDecodeError as error:
            # Deliver what was good: re-decode up to the fault.
            good = bytes(error.object)[: error.start]
            self._decoder.setstate((b"", flags))
            text = self._decoder.decode(good, False)
            self._bad = error
        if self._pos:
            self._text = self._text[self._pos :]
            self._scan = max(self._scan - self._pos, 0)
            self._pos = 0
        if self._eofchar:
            stop = text.find(self._eofchar)
            if stop >= 0:
                text = text[:stop]
                self._stopped = True
        self._chunks.append((flags, inside, data, len(text)))
        self._text += text

    def _advance(self, count: int) -> None:
        """``count`` characters are used: forget the bytes behind them."""
        self._pos += count
        self._scan = max(self._scan, self._pos)
        self._used += count
        # The last chunk stays: it may hold bytes not yet decoded.
        while len(self._chunks) > 1 and self._used >= self._chunks[0][3]:
            if self._stopped and self._used == self._chunks[0][3]:
                break
            self._used -= self._chunks[0][3]
            self._chunks.popleft()

    def unread(self) -> bytes:
        """The bytes behind everything decoded and not used; empties this."""
        if not self._chunks:
            return b""
        flags, inside, data, _ = self._chunks[0]
        raw = inside + data
        # Bytes inside the codec belong to the first unread character.
        probe = codecs.getincrementaldecoder(self._codec)("strict")
        probe.setstate((b"", flags))
        got = start = 0
        while got < self._used and start < len(raw):
            got += len(probe.decode(raw[start : start + 1], False))
            start += 1
        rest = [raw[start:]]
        rest.extend(chunk[2] for chunk in list(self._chunks)[1:])
        back = b"".join(rest)
        if self._skip_lf:
            back = _without_lf(back, probe)
        self._chunks.clear()
        self._used = 0
        self._text = ""
        self._pos = self._scan = 0
        return back

    def _out(self, text: str) -> str | bytes:
        return text.encode("latin-1") if self._bytes else text

    def _swallow_lf(self) -> None:
        # The line feed of a CR LF whose CR ended an earlier line.
        if self._skip_lf and self._pos < len(self._text):
            self._skip_lf = False
            if self._text[self._pos] == "\n":
                self._advance(1)

    def _line_end(self) -> tuple[int, int] | None:
        """(end of the line's text, start of the next line) or None."""
        text, start = self._text, self._scan
        if self._mode == "auto":
            lf = text.find("\n", start)
            cr = text.find("\r", start, lf if lf >= 0 else len(text))
            if cr >= 0:
                if cr + 1 < len(text):
                    return cr, cr + 2 if text[cr + 1] == "\n" else cr + 1
                # A lone CR ends the line at once; its LF, if one
                # follows, is swallowed later: waiting could hang.
                self._skip_lf = True
                return cr, cr + 1
            return (lf, lf + 1) if lf >= 0 else None
        mark = {"lf": "\n", "cr": "\r", "crlf": "\r\n"}[self._mode]
        found = text.find(mark, max(start - len(mark) + 1, self._pos))
        return (found, found + len(mark)) if found >= 0 else None

    def line(self, limit: int = -1) -> str | bytes | None:
        r"""The next line with "\n" as its end.

        At the end of the stream what is left, empty if nothing. None: the
        line is not complete yet. ``limit`` >= 0: at most so many characters.
        """
        self._swallow_lf()
        found = self._line_end()
        if found is None:
            self._scan = len(self._text)
            if self._bad is not None:
                if not self.empty:
                    return self._rest(limit)
                raise self._bad
            if 0 <= limit <= len(self._text) - self._pos:
                return self.take(limit)
            return self._rest(limit) if self.ended else None
        end, following = found
        if 0 <= limit <= end - self._pos:
            self._scan = self._pos
            return self.take(limit)
        line = self._text[self._pos : end] + "\n"
        self._advance(following - self._pos)
        return self._out(line)

    def _rest(self, limit: int) -> str | bytes:
        rest = self.take(limit if limit >= 0 else len(self._text))
        return self._out("") if rest is None else rest

    def take(self, count: int) -> str | bytes | None:
        """Up to ``count`` characters of what is there, translated.

        None: nothing is there yet. Empty: the end.
        """
        parts: list[str] = []
        have = 0
        while have < count:
            self._swallow_lf()
            piece = self._text[self._pos : self._pos + count - have]
            if not piece:
                break
            used = len(piece)
            if self._mode == "cr":
                piece = piece.replace("\r", "\n")
            elif self._mode == "crlf":
                if piece[-1] == "\r":
                    following = self._text[self._pos + used : self._pos + used + 1]
                    if following == "\n":
                        piece += following
                        used += 1
                    elif not following and not self.ended:
                        # Half a line end: wait for the other half.
                        piece = piece[:-1]
                        used -= 1
                        if not piece:
                            break
                piece = piece.replace("\r\n", "\n")
            elif self._mode == "auto":
                self._skip_lf = piece[-1] == "\r"
                piece = io.IncrementalNewlineDecoder(None, True).decode(piece, True)
            self._advance(used)
            parts.append(piece)
            have += len(piece)
        if not parts:
            if count and self._bad is not None:
                raise self._bad
            if count and not self.ended:
                return None
        return self._out("".join(parts))


def _without_lf(data: bytes, decoder: codecs.IncrementalDecoder) -> bytes:
    """``data`` without its first character, if that is a line feed."""
    for at in range(len(data)):
        try:
            character = decoder.decode(data[at : at + 1], False)
        except UnicodeDecodeError:
            break
        if character:
            return data[at + 1 :] if character == "\n" else data
    return data


class TextWriter:
    """Text (or bytes, if the encoding is None) in, bytes out."""

    def __init__(self, settings: TextSettings) -> None:
        self._bytes = settings.encoding is None
        # Tcl: "auto" on the output side of a socket is CR LF everywhere.
        self._end = {"auto": "\r\n", "crlf": "\r\n", "cr": "\r"}.get(settings.output, "\n")
        self._encoder = (
            None
            if settings.encoding is None
            else codecs.getincrementalencoder(settings.encoding)("strict")
        )

    def encode(self, data: object) -> bytes:
        """TypeError if ``data`` is of the wrong sort for the encoding."""
        if self._encoder is None:
            if isinstance(data, str):
                raise TypeError("a bytes-like object is required, not 'str' (encoding is None)")
            raw = bytes(memoryview(data))  # type: ignore[arg-type]
            return raw if self._end == "\n" else raw.replace(b"\n", self._end.encode())
        if not isinstance(data, str):
            raise TypeError(f"a string is required, not {type(data).__name__!r} (encoding is set)")
        if self._end != "\n":
            data = data.replace("\n", self._end)
        return self._encoder.encode(data)
