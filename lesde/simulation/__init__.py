"""Sample paths of a model: one call, three engines."""

from __future__ import annotations

from lesde.simulation.run import simulate

__all__ = ["simulate"]
