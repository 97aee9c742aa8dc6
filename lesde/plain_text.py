"""Text for streams that cannot hold all of it: what an encoding lacks is put in ASCII."""

from __future__ import annotations

import codecs
import re
import sys
import unicodedata
from itertools import groupby
from typing import Any

__all__ = ["can_hold", "in_ascii", "put_in_ascii", "that_fits"]

_ERRORS = "lesde.ascii"
_WORDS = {
    **{"−": "-", "–": "-", "—": "-", "·": "*", "⋅": "*", "×": "x", "…": "...", "‖": "||", "⊤": "T"},
    **{"√": "sqrt", "∫": "int", "∏": "prod", "∞": "inf", "∝": "~", "≤": "<=", "≥": ">=", "≠": "!="},
    **{"±": "+/-", "→": "->", "←": "<-", "↦": "|->", "⊗": "(x)", "⟨": "<", "⟩": ">", "′": "'"},
    **{"’": "'", "‘": "'", "“": '"', "”": '"', "•": "*", "°": " deg", "ß": "ss", "⁄": "/"},
    **{"\u0302": "hat", "\u0303": "~", "\u0304": "bar", "\u0305": "bar", "\u0307": "dot"},
}


def in_ascii(text: str) -> str:
    """The text with Greek letters by their names, signs as programs write them, and ? for what is left."""
    parts = []
    for mark, run in groupby(text, _script):
        parts.append(mark + "".join(map(_plain, run)))
    return "".join(parts)


def can_hold(text: str, stream: Any = None) -> bool:
    """Whether a stream, standard output where none is given, has all characters of a text."""
    try:
        text.encode(_encoding(sys.stdout if stream is None else stream))
    except UnicodeError:
        return False
    return True


def that_fits(text: str, stream: Any = None) -> str:
    """The text, with what a stream does not have in ASCII."""
    encoding = _encoding(sys.stdout if stream is None else stream)
    return text.encode(encoding, _ERRORS).decode(encoding)


def put_in_ascii() -> None:
    """Have standard output and error take what they cannot hold in ASCII, in place of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ERRORS)


def _encoding(stream: Any) -> str:
    return getattr(stream, "encoding", None) or "utf-8"


def _script(character: str) -> str:
    """What stands before a run of raised or lowered characters."""
    kind = unicodedata.decomposition(character).partition(">")[0]
    return {"<super": "^", "<sub": "_"}.get(kind, "")


def _plain(character: str) -> str:
    if character.isascii():
        return character
    if character in _WORDS:
        return _WORDS[character]
    name = unicodedata.name(character, "")
    if match := re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", name):
        word = match[2].replace("LAMDA", "LAMBDA")
        return word.lower() if match[1] == "SMALL" else word.capitalize()
    if name.startswith("BOX DRAWINGS"):
        level, upright = "HORIZONTAL" in name, "VERTICAL" in name
        return "+" if level == upright else "-" if level else "|"
    parts = unicodedata.normalize("NFKD", character)
    if parts == character:
        return "" if unicodedata.combining(character) else "?"
    return "".join(map(_plain, parts))


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return in_ascii(error.object[error.start : error.end]), error.end


codecs.register_error(_ERRORS, _replaced)
