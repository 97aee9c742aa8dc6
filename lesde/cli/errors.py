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

__all__ = ["ending", "in_options", "say"]

# Arguments whose option has another name than theirs with dashes.
_RENAMED = {
    "n_classes": "--classes",
    "n_features": "--features",
    "n_per_class": "--per-class",
}
_ARGUMENTS = (
    *_RENAMED,
    *("alpha", "beta", "confidence", "criterion", "device", "dt", "dtype", "engine", "keep"),
    *("learning_rate", "memory_limit", "method", "noise", "replicates", "seed", "strength"),
    "transform",
)
_NAMES = "|".join(_ARGUMENTS)
_SENTENCES = (
    (
        r"Give it a value with parameters=\{'(\w+)': \.\.\.\}, or None there to leave it free",
        r"Give it a value with --parameter \1=NUMBER, or leave it open with --parameter \1",
    ),
    (r"parameters=\{\.\.\.\}", "--parameter NAME=NUMBER"),
    (r"parameters\['(\w+)'\]", r"--parameter \1"),
    (r"parameters may", "--parameter may"),
    (r"^p must", "--label-noise must"),
    # The noise of an engine is not that of a model.
    (r"\bnoise='(plain|sampling|modified)'", r"--sde \1"),
    (r"^noise must be one of", "--sde must be one of"),
    # The command line has no first_replicate.
    (
        r"Ask for fewer replicates or times[^.]*?first_replicate",
        "Ask for fewer replicates or times",
    ),
)


def in_options(message: str) -> str:
    """A message with ``name='value'``, names of arguments, and calls put as options.

    Plain words that are also names, such as transform, are left alone except where a sentence starts
    with one.
    """
    for pattern, words in _SENTENCES:
        message = re.sub(pattern, words, message)
    message = re.sub(rf"\b({_NAMES})=None\b", lambda m: f"no {_option(m[1])}", message)
    value = r"'([^']*)'|([\w.+-]*\w)"
    message = re.sub(
        rf"\b({_NAMES})=(?:{value})", lambda m: f"{_option(m[1])} {m[2] or m[3]}", message
    )
    message = re.sub(rf"^({_NAMES})(?= (must|was|is|needs) )", lambda m: _option(m[1]), message)
    long = "|".join(name for name in _ARGUMENTS if "_" in name)
    return re.sub(rf"\b({long})\b", lambda m: _option(m[1]), message)


def _option(name: str) -> str:
    return _RENAMED.get(name, "--" + name.replace("_", "-"))


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
        raise _failed(in_options(str(error)) if study is None else str(error)) from None
    except OSError as error:
        if error.errno == errno.EPIPE:  # nobody reads on
            raise
        why = error.strerror or str(error)
        if study is not None:
            why = f"--out: {study} cannot be used ({why}: {error.filename or study}); give another folder"
        elif error.filename:
            why = f"{why}: {error.filename}"
        raise _failed(f"{why}.") from None
    except KeyboardInterrupt:
        if study is None:
            raise
        text = f"\ninterrupted; what was done is in {study}. Run the command again to continue."
        say(text, fg="yellow", err=True)
        raise typer.Exit(130) from None


def _failed(message: str) -> typer.Exit:
    say(f"error: {message}", fg="red", err=True)
    return typer.Exit(2)
