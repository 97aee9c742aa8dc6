"""Separation of classes: counted in trajectories by a criterion, or predicted from a law."""

from lesde.analysis.separation.criteria import (
    CRITERIA,
    criterion,
    linear,
    nearest_center,
    projection,
)
from lesde.analysis.separation.function import separation_function
from lesde.analysis.separation.intervals import binomial_interval
from lesde.analysis.separation.predict import predict_from_law, predict_separation
from lesde.analysis.separation.probability import separation_probability

__all__ = [
    "CRITERIA",
    "binomial_interval",
    "criterion",
    "linear",
    "nearest_center",
    "predict_from_law",
    "predict_separation",
    "projection",
    "separation_function",
    "separation_probability",
]
