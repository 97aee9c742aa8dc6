"""Analyses: each takes a dataset of paths, simulated or recorded, and returns a dataset."""

from lesde.analysis.calibration import calibrate
from lesde.analysis.collapse import neural_collapse
from lesde.analysis.convergence import convergence
from lesde.analysis.elasticity.fit import fit_elasticity
from lesde.analysis.elasticity.kernel import fitted_kernel
from lesde.analysis.elasticity.published import published_elasticity
from lesde.analysis.impact.distance import fit_feature_kernel, impact_by_distance
from lesde.analysis.impact.fit import fit_impact
from lesde.analysis.impact.moments import impact_from_changes
from lesde.analysis.layers import layer_collapse
from lesde.analysis.separation.function import separation_function
from lesde.analysis.separation.predict import predict_separation
from lesde.analysis.separation.probability import separation_probability
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
    "neural_collapse",
    "predict_separation",
    "published_elasticity",
    "separation_function",
    "separation_probability",
    "statistics",
]
