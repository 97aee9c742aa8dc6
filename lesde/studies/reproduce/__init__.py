"""The published experiments of Zhang, Wang and Su (NeurIPS 2021), from training to figures.

`protocol` holds the settings, `trainings` the networks, `analysis` and `crossing` what is computed from them, `figures` the
drawings, and `sections` the study itself: its cells, tables and report.
"""

from lesde.studies.reproduce.crossing import Crossing, crossing
from lesde.studies.reproduce.protocol import Protocol, load_protocol
from lesde.studies.reproduce.sections import FIGURES, find_crossings, run

__all__ = [
    "FIGURES",
    "Crossing",
    "Protocol",
    "crossing",
    "find_crossings",
    "load_protocol",
    "run",
]
