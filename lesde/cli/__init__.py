"""The command line."""

from lesde.cli.commands import main

__all__ = ["main"]
