"""Whole studies, from data to a report: `demo`, `rates` and `reproduce`, and the runner on which a new one is declared.

Each has a function ``run(settings, folder)`` and a command of its name. Your own study consists of cells and sections,
given to :class:`lesde.studies.runner.Runner`; ``rates.py`` is the shortest to copy.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "DemoConfig": "settings",
    "RateConfig": "settings",
    "compare_learning_rates": "learning_rates",
    "learning_rate_experiment": "learning_rates",
    "load_config": "settings",
    "load_protocol": "settings",
}
_ROOMS = ("demo", "learning_rates", "rates", "reproduce", "runner")

__all__ = [*_HOMES, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"lesde.studies.{name}")
    if name in _HOMES:
        return getattr(import_module(f"lesde.studies.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'lesde.studies' has no attribute {name!r}")
