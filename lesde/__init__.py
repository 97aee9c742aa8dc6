"""Locally elastic stochastic differential equations for the feature dynamics of classifiers.

An elasticity kernel goes into a model; the model is derived, solved and simulated; datasets of paths,
simulated or recorded from a network, go into the analyses and figures.

>>> import lesde
>>> kernel = lesde.TwoLevel(alpha="2/(1+t)", beta=-0.5)
>>> model = lesde.LESDE(kernel, n_classes=3, n_features=3, n_per_class=100, noise=0.1)
>>> model.derive().critical_constant
3/2
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each public name lives. Loading on first use keeps `import lesde` and `lesde --help` quick.
_HOMES = {
    "TwoLevel": "lesde.kernels",
    "ClassMatrix": "lesde.kernels",
    "Hierarchical": "lesde.kernels",
    "LabelNoise": "lesde.kernels",
    "kernel": "lesde.function_kernel",
    "FeatureKernel": "lesde.feature_kernel",
    "LESDE": "lesde.model",
    "Diverged": "lesde.errors",
    "from_arrays": "lesde.paths",
    "simulate": "lesde.simulation",
    "moments": "lesde.class_moments",
    "separation_probability": "lesde.analysis",
    "predict_separation": "lesde.analysis",
    "neural_collapse": "lesde.analysis",
    "layer_collapse": "lesde.analysis",
    "convergence": "lesde.analysis",
    "fit_elasticity": "lesde.analysis",
    "fit_feature_kernel": "lesde.analysis",
    "fit_impact": "lesde.analysis",
    "impact_by_distance": "lesde.analysis",
    "measure_impact": "lesde.networks.module_impact",
    "fitted_kernel": "lesde.analysis",
    "calibrate": "lesde.analysis",
    "statistics": "lesde.analysis",
    "record": "lesde.networks",
    "Recorder": "lesde.networks",
    "plot": "lesde.plot",
}

__all__ = [
    "LESDE",
    "ClassMatrix",
    "Diverged",
    "FeatureKernel",
    "Hierarchical",
    "LabelNoise",
    "Recorder",
    "TwoLevel",
    "__version__",
    "calibrate",
    "convergence",
    "fit_elasticity",
    "fit_feature_kernel",
    "fit_impact",
    "fitted_kernel",
    "from_arrays",
    "impact_by_distance",
    "kernel",
    "layer_collapse",
    "measure_impact",
    "moments",
    "neural_collapse",
    "plot",
    "predict_separation",
    "record",
    "separation_probability",
    "simulate",
    "statistics",
]

if TYPE_CHECKING:
    from lesde import plot
    from lesde.analysis import (
        calibrate,
        convergence,
        fit_elasticity,
        fit_feature_kernel,
        fit_impact,
        fitted_kernel,
        impact_by_distance,
        layer_collapse,
        neural_collapse,
        predict_separation,
        separation_probability,
        statistics,
    )
    from lesde.class_moments import moments
    from lesde.errors import Diverged
    from lesde.feature_kernel import FeatureKernel
    from lesde.function_kernel import kernel
    from lesde.kernels import ClassMatrix, Hierarchical, LabelNoise, TwoLevel
    from lesde.model import LESDE
    from lesde.networks import Recorder, record
    from lesde.networks.module_impact import measure_impact
    from lesde.paths import from_arrays
    from lesde.simulation import simulate


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lesde' has no attribute {name!r}")
    home = import_module(_HOMES[name])
    value = home if name == "plot" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
