"""The published experiments: Zhang, Wang and Su, NeurIPS 2021 (arXiv 2110.05960), from training to figures.

`trainings` holds the networks, `analysis` and `crossing` what is computed from them, `figures` the drawings, and `sections` the
study itself: its cells, tables and report.
"""

from lesde.studies.reproduce.crossing import Crossing, crossing
from lesde.studies.reproduce.sections import FIGURES, find_crossings, run
from lesde.studies.settings import Protocol, load_protocol

__all__ = ["FIGURES", "Crossing", "Protocol", "crossing", "find_crossings", "load_protocol", "run"]
