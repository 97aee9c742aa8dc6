"""The package's messages in the words of the command line, and how a command ends with one."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from lesde.text import that_fits

__all__ = ["ending", "fail", "failed", "in_options", "interrupted", "say"]


# Arguments whose option has another name than theirs with dashes.
_RENAMED = {
    "n_classes": "--classes",
    "n_features": "--features",
    "n_per_class": "--per-class",
}
_ARGUMENTS = (
    *_RENAMED,
    *("alpha", "beta", "confidence", "criterion", "device", "dt", "dtype", "engine", "keep"),
    *("learning_rate", "memory_limit", "method", "noise", "replicates", "sde", "seed", "strength"),
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
def ending() -> Iterator[None]:
    """How a command ends early: with one line on what was wrong."""
    try:
        yield
    except (ValueError, TypeError, ArithmeticError) as error:
        raise fail(error) from None
    except OSError as error:
        if error.errno == errno.EPIPE:  # nobody reads on
            raise
        where = f": {error.filename}" if error.filename else ""
        raise failed(f"{error.strerror or error}{where}.") from None


def fail(error: Exception) -> typer.Exit:
    """Say what went wrong, in the words of the command line; to be raised."""
    return failed(in_options(str(error)))


def failed(message: str) -> typer.Exit:
    """Say what went wrong, in these words; to be raised."""
    say(f"error: {message}", fg="red", err=True)
    return typer.Exit(2)


def interrupted(what: str, folder: Path | None) -> typer.Exit:
    """Say where ``what`` is after Ctrl-C; to be raised."""
    say(
        f"\ninterrupted; {what} in {folder}. Run the command again to continue.",
        fg="yellow",
        err=True,
    )
    return typer.Exit(130)
