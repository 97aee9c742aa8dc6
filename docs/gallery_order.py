"""The order of the gallery: from the first steps to real networks."""

from __future__ import annotations

ORDER = (
    "plot_first_steps.py",
    "plot_phase_transition.py",
    "plot_sgd_and_sde.py",
    "plot_sampling_noise.py",
    "plot_feature_kernel.py",
    "plot_collapse_learning_rate.py",
    "plot_fit_elasticity.py",
    "plot_calibration.py",
    "plot_networks.py",
    "plot_record_any_model.py",
    "plot_learning_rate_networks.py",
    "plot_local_elasticity.py",
    "plot_layers.py",
)


class ReadingOrder:
    """Sort key of sphinx-gallery; an example that is not listed comes last, by name."""

    def __init__(self, source_folder: str):
        self.source_folder = source_folder

    def __call__(self, filename: str) -> tuple[int, str]:
        return (ORDER.index(filename) if filename in ORDER else len(ORDER), filename)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({ORDER})"
