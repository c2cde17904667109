"""Text out of tokens as they come."""

from collections.abc import Iterable, Sequence

_BROKEN = "\ufffd"  # what decoding half a character gives
_CONTEXT = 8


class TextStream:
    """Turns tokens into pieces of text; a character is held back until it is whole.

    The pieces together are `decode` of all ids, as long as those are whole characters. The window
    that is decoded again for each token starts anew at every whole piece, so the cost does not grow
    with the text.

    Args:
        decode: text of ids.
        after: the ids before the first, if their text is already shown: a SentencePiece token
            loses its space only where a text begins.
    """

    def __init__(self, decode, after: Iterable[int] = ()):
        self._decode = decode
        self._window = list(after)[-_CONTEXT:]
        self._context = len(self._window)  # ids at its start whose text is out, kept for spacing
        self._printed = decode(self._window)

    def push(self, token: int) -> str:
        """The text that this token completes, "" where it completes none."""
        self._window.append(token)
        text = self._decode(self._window)
        if text.endswith(_BROKEN) or len(text) <= len(self._printed):
            return ""
        piece = text[len(self._printed):]
        self._window, self._context = (self._window[self._context:],
                                       len(self._window) - self._context)
        self._printed = self._decode(self._window)
        return piece

    def rest(self) -> str:
        """What is held back at the end."""
        return self._decode(self._window)[len(self._printed):]


class StopStrings:
    """Cuts a text before the first of some strings, which may lie across pieces."""

    def __init__(self, strings: Sequence[str] = ()):
        self._strings = [s for s in strings if s]
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """Text that is certain to be before any of the strings, and whether one was met."""
        self._held += piece
        found = [at for s in self._strings if (at := self._held.find(s)) >= 0]
        if found:
            text, self._held = self._held[:min(found)], ""
            return text, True
        keep = max((n for s in self._strings for n in range(1, len(s))
                    if self._held.endswith(s[:n])), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text, False

    def rest(self) -> str:
        """What looked like the beginning of a string and was none."""
        text, self._held = self._held, ""
        return text


class StoppedText:
    """Text of tokens as they come, up to the first stop string."""

    def __init__(self, decode, stop=(), after=()):
        self._stream, self._stop = TextStream(decode, after), StopStrings(stop)

    def push(self, token: int) -> tuple[str, bool]:
        """New text, and whether a stop string was met."""
        return self._stop.push(self._stream.push(token))

    def rest(self) -> str:
        text, stopped = self._stop.push(self._stream.rest())
        return text if stopped else text + self._stop.rest()
