"""Analyses: each takes a dataset of paths, simulated or recorded, and returns a dataset."""

from lesde.analysis.calibration import calibrate
from lesde.analysis.collapse import neural_collapse
from lesde.analysis.convergence import convergence
from lesde.analysis.elasticity import fit_elasticity
from lesde.analysis.fitted_kernel import fitted_kernel
from lesde.analysis.impact import fit_impact
from lesde.analysis.impact_distance import fit_feature_kernel, impact_by_distance
from lesde.analysis.impact_moments import impact_from_changes
from lesde.analysis.layer_collapse import layer_collapse
from lesde.analysis.log_ratio import log_ratio_elasticity
from lesde.analysis.prediction import predict_separation
from lesde.analysis.published_ratios import published_elasticity
from lesde.analysis.separability import separation_probability
from lesde.analysis.separation_function import separation_function
from lesde.analysis.statistics import statistics

__all__ = [
    "calibrate",
    "convergence",
    "fit_elasticity",
    "fit_feature_kernel",
    "fit_impact",
    "fitted_kernel",
    "impact_by_distance",
    "impact_from_changes",
    "layer_collapse",
    "log_ratio_elasticity",
    "neural_collapse",
    "predict_separation",
    "published_elasticity",
    "separation_function",
    "separation_probability",
    "statistics",
]
