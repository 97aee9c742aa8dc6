"""Numbers as text, tables on the terminal, and text in ASCII for streams that cannot hold all of it."""

from __future__ import annotations

import codecs
import math
import re
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any


def format_number(value: Any) -> str:
    """Four significant digits; a dash where there is no number; text as it is."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    return "–" if math.isnan(value) else f"{value:.4g}"


def with_interval(value: float, low: float, high: float) -> str:
    """A number with its interval in brackets, to three digits, or as many as its width determines."""
    digits = 3
    width, size = high - low, max(abs(low), abs(high))
    if math.isfinite(width) and 0 < width < size:
        digits = max(3, min(6, math.floor(math.log10(size)) - math.floor(math.log10(width)) + 2))
    text = f"{value:.{digits}g}" if math.isfinite(value) else "–"
    both_nan = math.isnan(low) and math.isnan(high)
    return text if both_nan else f"{text} [{low:.{digits}g}, {high:.{digits}g}]"


def print_rows(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print one table, numbers to the right."""
    # Only who prints a table loads it.
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=that_fits(title), title_justify="left", box=box.SIMPLE)
    for name in header:
        table.add_column(that_fits(name), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(that_fits(format_number(cell)) for cell in row))
    console = Console()
    # A narrow terminal breaks lines; a table must not drop digits.
    wide = console.options.update(max_width=1000)
    console.width = max(console.width, console.measure(table, options=wide).maximum)
    console.print(table)


# --------------------------------------------------------------------------------------------------
# Characters that an encoding lacks are put in ASCII.

_WORDS = {
    **{"−": "-", "–": "-", "—": "-", "·": "*", "⋅": "*", "×": "x", "‖": "||", "⊤": "T", "′": "'"},
    **{"√": "sqrt", "∫": "int", "∏": "prod", "∞": "inf", "∝": "~", "≤": "<=", "≥": ">=", "≠": "!="},
    **{"±": "+/-", "→": "->", "←": "<-", "↦": "|->", "⊗": "(x)", "⟨": "<", "⟩": ">", "’": "'"},
    **{"“": '"', "”": '"', "•": "*", "─": "-", "│": "|", "⁻": "-"},
    **{"\u0302": "hat", "\u0304": "bar", "\u0305": "bar"},
}


def in_ascii(text: str) -> str:
    """The text with Greek letters by their names, signs as programs write them, and ? for the rest."""
    text = re.sub("[¹²³⁰-ⁿᴬ-ᵡˠ-ˤ]+", r"^\g<0>", text)  # raised
    text = re.sub("[₀-ₜᵢ-ᵥ]+", r"_\g<0>", text)  # lowered
    for sign, word in _WORDS.items():
        text = text.replace(sign, word)
    text = re.sub("[\u0300-\u036f]", "", unicodedata.normalize("NFKD", text))  # without accents
    text = re.sub("[Α-Ωα-ω]", _greek, text)
    return text.encode("ascii", "replace").decode("ascii")


def _greek(letter: re.Match[str]) -> str:
    word = unicodedata.name(letter[0]).split()[-1].replace("LAMDA", "LAMBDA")
    return word.lower() if letter[0].islower() else word.capitalize()


def _replaced(error: Any) -> tuple[str, int]:
    return in_ascii(error.object[error.start : error.end]), error.end


codecs.register_error("lesde.ascii", _replaced)


def that_fits(text: str, stream: Any = None) -> str:
    """The text, with characters in ASCII that the stream (by default standard output) cannot hold."""
    encoding = getattr(stream or sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "lesde.ascii").decode(encoding)


def can_hold(text: str) -> bool:
    """True if standard output can hold all characters of a text."""
    return that_fits(text) == text


def put_in_ascii() -> None:
    """Make standard output and error write in ASCII what they cannot hold, in place of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="lesde.ascii")
