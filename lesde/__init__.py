"""Locally elastic stochastic differential equations for the feature dynamics of classifiers.

An elasticity kernel goes into a model; the model is derived, solved and simulated; datasets of paths,
simulated or recorded from a network, go into the analyses and figures.

>>> import lesde
>>> kernel = lesde.TwoLevel(alpha="2/(1+t)", beta=-0.5)
>>> model = lesde.LESDE(kernel, n_classes=3, n_features=3, n_per_class=100, noise=0.1)
>>> lesde.derive(model).critical_constant
3/2
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each public name lives. Loading on first use keeps `import lesde` and `lesde --help` quick.
_HOMES = {
    "TwoLevel": "lesde.model.kernels",
    "ClassMatrix": "lesde.model.kernels",
    "Hierarchical": "lesde.model.kernels",
    "LabelNoise": "lesde.model.kernels",
    "kernel": "lesde.model.kernels",
    "FeatureKernel": "lesde.model.kernels",
    "LESDE": "lesde.model.lesde",
    "Diverged": "lesde.errors",
    "from_arrays": "lesde.paths",
    "derive": "lesde.derivation",
    "law": "lesde.laws.law",
    "tensor_law": "lesde.laws.law",
    "tensor_paths": "lesde.processes.tensor_paths",
    "simulate": "lesde.simulation",
    "Exact": "lesde.processes.engines",
    "TorchSDE": "lesde.processes.engines",
    "SGD": "lesde.processes.engines",
    "moments": "lesde.laws.moments",
    "separation_probability": "lesde.analysis",
    "predict_separation": "lesde.analysis",
    "neural_collapse": "lesde.analysis",
    "layer_collapse": "lesde.analysis",
    "convergence": "lesde.analysis",
    "fit_elasticity": "lesde.analysis",
    "fit_feature_kernel": "lesde.analysis",
    "fit_impact": "lesde.analysis",
    "impact_by_distance": "lesde.analysis",
    "measure_impact": "lesde.networks.impact:measure_module_impact",
    "fitted_kernel": "lesde.analysis",
    "calibrate": "lesde.analysis",
    "statistics": "lesde.analysis",
    "record": "lesde.networks",
    "Recorder": "lesde.networks",
    "plot": "lesde.plot",
    "analysis": "lesde.analysis",
    "networks": "lesde.networks",
    "studies": "lesde.studies",
}
_ROOMS = ("analysis", "networks", "plot", "studies")

__all__ = [
    "LESDE",
    "SGD",
    "ClassMatrix",
    "Diverged",
    "Exact",
    "FeatureKernel",
    "Hierarchical",
    "LabelNoise",
    "Recorder",
    "TorchSDE",
    "TwoLevel",
    "__version__",
    "analysis",
    "calibrate",
    "convergence",
    "derive",
    "fit_elasticity",
    "fit_feature_kernel",
    "fit_impact",
    "fitted_kernel",
    "from_arrays",
    "impact_by_distance",
    "kernel",
    "law",
    "layer_collapse",
    "measure_impact",
    "moments",
    "networks",
    "neural_collapse",
    "plot",
    "predict_separation",
    "record",
    "separation_probability",
    "simulate",
    "statistics",
    "studies",
    "tensor_law",
    "tensor_paths",
]

if TYPE_CHECKING:
    from lesde import analysis, networks, plot, studies
    from lesde.analysis import (
        calibrate,
        convergence,
        fit_elasticity,
        fit_feature_kernel,
        fit_impact,
        impact_by_distance,
        neural_collapse,
        predict_separation,
        separation_probability,
        statistics,
    )
    from lesde.analysis import layers as layer_collapse
    from lesde.analysis.elasticity import fit as fitted_kernel
    from lesde.derivation import derive
    from lesde.errors import Diverged
    from lesde.laws.law import law, tensor_law
    from lesde.laws.moments import moments
    from lesde.model.kernels import (
        ClassMatrix,
        FeatureKernel,
        Hierarchical,
        LabelNoise,
        TwoLevel,
        kernel,
    )
    from lesde.model.lesde import LESDE
    from lesde.networks import Recorder, record
    from lesde.networks.impact import measure_module_impact as measure_impact
    from lesde.paths import from_arrays
    from lesde.processes.engines import SGD, Exact, TorchSDE
    from lesde.processes.tensor_paths import tensor_paths
    from lesde.simulation import simulate


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lesde' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    home = import_module(module)
    value = home if name in _ROOMS else getattr(home, attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
