"""What stdout or stderr cannot encode is written so that it can be read, and never a traceback."""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata
from contextlib import suppress

#: Of the characters that the harness and rich write.
_PLAIN = {
    "−": "-", "–": "-", "—": "-", "·": "|", "×": "x", "→": "->", "←": "<-", "±": "+-",
    "≥": ">=", "≤": "<=", "≠": "!=", "√": "sqrt", "‖": "||", "′": "'", "⟨": "<", "⟩": ">",
    "⁄": "/", **dict.fromkeys("─━╸╺╴╶", "-"), **dict.fromkeys("│┃", "|"),
}  # fmt: skip


def plain(character: str) -> str:
    r"""A character in ASCII: its like, else the escape that Python writes for it.

    >>> [plain(one) for one in "−→─┃²…θé"]
    ['-', '->', '-', '|', '2', '...', 'theta', '\\xe9']
    """
    if character in _PLAIN:
        return _PLAIN[character]
    name = unicodedata.name(character, "")
    if name.startswith("BOX DRAWINGS"):
        return "+"
    if name.startswith(("GREEK SMALL LETTER", "GREEK CAPITAL LETTER")):
        letter = name.split()[-1]
        return letter.title() if "CAPITAL" in name else letter.lower()
    like = "".join(_PLAIN.get(one, one) for one in unicodedata.normalize("NFKD", character))
    return like if like.isascii() else character.encode("ascii", "backslashreplace").decode()


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(plain, error.object[error.start : error.end])), error.end


def _find(name: str) -> codecs.CodecInfo | None:
    """ASCII under a name of our own: click takes it for a mistake and writes UTF-8 instead."""
    if name != "rib_ascii":
        return None
    ascii_ = codecs.lookup("ascii")
    return codecs.CodecInfo(
        ascii_.encode, ascii_.decode, name=name,
        incrementalencoder=ascii_.incrementalencoder, incrementaldecoder=ascii_.incrementaldecoder,
        streamreader=ascii_.streamreader, streamwriter=ascii_.streamwriter,
    )  # fmt: skip


def write_what_can_be_read() -> None:
    """From here on stdout and stderr take every character, in whatever encoding they have."""
    codecs.register_error("rib-plain", _replace)
    codecs.register(_find)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            with suppress(OSError):  # of a pipe that nobody reads: told when it is written to
                stream.reconfigure(encoding="rib_ascii" if is_ascii else None, errors="rib-plain")
