"""The package's messages in the words of the command line, and the end of a command with one."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from lesde.text import that_fits

RENAMED = {"n_classes": "classes", "n_features": "features", "n_per_class": "per-class"}
LONG = rf"{'|'.join(RENAMED)}|learning_rate|memory_limit"
"""Names that no sentence holds as words."""
NAMES = rf"{LONG}|alpha|beta|confidence|criterion|device|dt|dtype|engine|keep|method|noise|replicates|seed|strength|transform"
SENTENCES = (
    (
        r"^(alpha|beta) = \w+\(t\) has no value.*",
        r"--\1 must be given: a number or a formula in t.",
    ),
    (r"parameters=\{'(\w+)': \.\.\.\}, or None there", r"--parameter \1=NUMBER, or --parameter \1"),
    (r"parameters=\{\.\.\.\}", "--parameter NAME=NUMBER"),
    (r"parameters\['(\w+)'\]", r"--parameter \1"),
    (r"^p must", "--label-noise must"),
    # The noise of an engine is not that of a model, and the command line has no first_replicate.
    (r"\bnoise='(plain|sampling|modified)'", r"--sde \1"),
    (r"^noise must be one of", "--sde must be one of"),
    (r" or times[^.]*?first_replicate", " or times"),
)


def in_options(message: str) -> str:
    """A message with ``name='value'`` and names of arguments put as options.

    Plain words that are also names, such as transform, are left alone except where a sentence starts with one.
    """
    for pattern, words in SENTENCES:
        message = re.sub(pattern, words, message)
    message = re.sub(rf"\b({NAMES})=None\b", lambda m: f"no {_option(m[1])}", message)
    value = r"=(?:'([^']*)'|([\w.+-]*\w))"
    given = rf"\b({NAMES}){value}"
    message = re.sub(given, lambda m: f"{_option(m[1])} {m[2] or m[3]}", message)
    start = rf"^({NAMES})(?= (?:must|was|is|needs) )|\b({LONG})\b"
    return re.sub(start, lambda m: _option(m[0]), message)


def _option(name: str) -> str:
    return "--" + RENAMED.get(name, name).replace("_", "-")


def say(text: str, *, err: bool = False, fg: str | None = None) -> None:
    """Print a line, in ASCII where the stream does not have its characters."""
    typer.secho(that_fits(text, sys.stderr if err else sys.stdout), fg=fg, err=err)


@contextmanager
def ending(study: Path | None = None) -> Iterator[None]:
    """End a failing command with one line that says what was wrong.

    ``study`` is the folder of a study, whose settings keep the names that they have in its file; after Ctrl-C
    the line says that what was done is there.
    """
    try:
        yield
    except (ValueError, TypeError, ArithmeticError) as error:
        message = in_options(str(error)) if study is None else str(error)
    except OSError as error:
        if error.errno == errno.EPIPE:  # nobody reads on
            raise
        message = ": ".join(str(part) for part in (error.strerror or error, error.filename) if part)
        message = f"{message}." if study is None else f"--out: {study} cannot be used ({message})."
    except KeyboardInterrupt:
        if study is None:
            raise
        text = f"\ninterrupted; what was done is in {study}. Run the command again to continue."
        say(text, fg="yellow", err=True)
        raise typer.Exit(130) from None
    else:
        return
    say(f"error: {message}", fg="red", err=True)
    raise typer.Exit(2)
