"""Benchmarks of lesde against its alternatives: `python -m benchmarks --help`."""
