"""Neural collapse of features, simulated or recorded: `neural_collapse`, and each metric as a function."""

from lesde.analysis.collapse.evaluation import METRICS, metric, neural_collapse, target_of
from lesde.analysis.collapse.metrics import (
    nc1,
    nc1_cdnv,
    nc1_trace,
    nc2_angle_std,
    nc2_etf,
    nc2_norm_cv,
    nc3,
    nc3_duality,
    nc4,
    ncc_accuracy,
)

__all__ = [
    "METRICS",
    "metric",
    "nc1",
    "nc1_cdnv",
    "nc1_trace",
    "nc2_angle_std",
    "nc2_etf",
    "nc2_norm_cv",
    "nc3",
    "nc3_duality",
    "nc4",
    "ncc_accuracy",
    "neural_collapse",
    "target_of",
]
