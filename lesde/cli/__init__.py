"""The command line."""

from lesde.cli.commands import main as main
