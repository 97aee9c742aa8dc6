"""The steps of the demonstration study: each takes datasets and returns datasets."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

import lesde
from lesde.analysis.prediction import predict_from_law
from lesde.initial import class_average
from lesde.study.config import DemoConfig

__all__ = [
    "MODELS",
    "analyse_collapse",
    "compare",
    "fit_models",
    "predict",
    "separate",
    "simulate_models",
]

MODELS = {"identity": "I-model", "logits": "L-model"}
STEP = 0.1
CRITERIA = ("projection", "linear", "nearest_center")
PREDICTED = ["probability", "lower", "upper", "pairwise"]
Progress = Callable[[int, int], None]


def from_start(config: DemoConfig, paths: xr.Dataset) -> xr.Dataset:
    """The frames from the model's start on."""
    return paths.isel(time=slice(int(np.searchsorted(paths.time, config.model_start)), None))


def fit_models(config: DemoConfig, network: xr.Dataset) -> dict[str, xr.Dataset]:
    """Fit α(t), β(t) for every learning rate, in the I-model and the L-model."""
    frames = from_start(config, network)
    # Longer intervals tell α and β apart where the noise of one is as large as its movement. The
    # last recording is kept, so that the kernel is known to the end.
    kept = np.arange(frames.sizes["time"] - 1, -1, -config.fit_every)[::-1]
    frames = frames.isel(time=np.union1d([0], kept))
    with warnings.catch_warnings():
        # Tail indices that cannot be given are NaN in the fit, and the report says so.
        warnings.filterwarnings("ignore", message="no (tail|log_slope)_index")
        return {
            transform: lesde.fit_elasticity(
                frames, transform=transform, confidence=config.confidence, estimator="averages"
            )
            for transform in MODELS
        }


def by_class(frames: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Features (replicate, time, sample, feature), float64, sorted by class; samples a class."""
    labels = frames.label.values
    x = frames.features.transpose("replicate", "time", "sample", "feature").values
    return x[:, :, np.argsort(labels, kind="stable")].astype(float), np.bincount(labels)


def within_noise(frames: xr.Dataset) -> tuple[float, float]:
    """σ̂ from the growth of the within-class variance, and the share of its change that σ²t explains.

    Under an LE-SDE the variance of a sample about its class mean grows by σ²t whatever the kernel.
    """
    x, counts = by_class(frames)
    deviation = x - np.repeat(class_average(x, counts), counts, axis=-2)
    variance = (deviation**2).mean((0, 2, 3)) / (1 - len(counts) / counts.sum())
    elapsed = frames.time.values - frames.time.values[0]
    growth = variance - variance[0]
    slope = max((elapsed @ growth) / (elapsed @ elapsed), 0.0)
    left = ((growth - slope * elapsed) ** 2).sum()
    return float(np.sqrt(slope)), float(1 - left / max((growth**2).sum(), 1e-300))


def make_model(
    config: DemoConfig, transform: str, fit: xr.Dataset, frames: xr.Dataset, rate: float
) -> lesde.LESDE:
    """The LE-SDE with the fitted kernel and noise of one learning rate."""
    sigma, _ = within_noise(frames)
    K, p = len(config.classes), frames.sizes["feature"]
    kernel = lesde.fitted_kernel(fit, rate)
    return lesde.LESDE(kernel, K, p, config.probe_per_class, transform=transform, noise=sigma)


def starts(frames: xr.Dataset) -> np.ndarray:
    """The networks' states at the model's start, (replicate, sample, feature), sorted by class."""
    return by_class(frames.isel(time=[0]))[0][:, 0]


def simulate_models(
    config: DemoConfig,
    network: xr.Dataset,
    fits: dict[str, xr.Dataset],
    progress: Progress,
) -> tuple[xr.Dataset, xr.Dataset]:
    """Simulate the fitted LE-SDEs with torchsde from the networks' own starts; and their exact law.

    Returns
    -------
    paths, law : xarray.Dataset
        With dimensions ``model`` and ``learning_rate``; the law for the mean start of the networks.
    """
    frames = from_start(config, network)
    times = frames.time.values
    total, done = len(MODELS) * len(config.learning_rates), 0
    all_paths, all_laws = [], []
    for transform in MODELS:
        paths_of, law_of = [], []
        for index, rate in enumerate(config.learning_rates):
            one = frames.isel(learning_rate=index)
            model = make_model(config, transform, fits[transform], one, rate)
            initial = starts(one)
            paths = lesde.simulate(
                model,
                times,
                initial=np.repeat(initial, config.copies, axis=0),
                replicates=config.copies * len(initial),
                engine="torchsde",
                method="srk",  # of weak order 2, so that these few steps are enough
                dt=STEP,
                seed=config.seed + 1000 + done,
            )
            law = model.law(times, initial=class_average(initial, model.counts).mean(0))
            paths_of.append(paths.assign_coords(learning_rate=rate))
            law_of.append(law.assign_coords(learning_rate=rate))
            done += 1
            progress(done, total)
        all_paths.append(xr.concat(paths_of, "learning_rate", combine_attrs="drop_conflicts"))
        all_laws.append(xr.concat(law_of, "learning_rate", combine_attrs="drop_conflicts"))
    names = xr.DataArray(list(MODELS.values()), dims="model", name="model")
    paths = xr.concat(all_paths, names, combine_attrs="drop_conflicts", join="override")
    law = xr.concat(all_laws, names, combine_attrs="drop_conflicts", join="override")
    iteration = frames.iteration if "iteration" in frames.coords else None
    return (paths if iteration is None else paths.assign_coords(iteration=iteration)), law


def sources(network: xr.Dataset, simulated: xr.Dataset) -> dict[str, xr.Dataset]:
    """The features to compare, by name: the networks' and each model's."""
    models = {str(name): simulated.sel(model=name, drop=True) for name in simulated.model.values}
    return {"network": network, **models}


def separate(
    config: DemoConfig, network: xr.Dataset, simulated: xr.Dataset, progress: Progress
) -> xr.Dataset:
    """Separation probabilities of networks and models by every criterion, dims source, criterion, …"""
    parts = sources(from_start(config, network), simulated)
    total, done, rows = len(parts) * len(CRITERIA), 0, []
    for paths in parts.values():
        columns = []
        for criterion in CRITERIA:
            columns.append(
                lesde.separation_probability(
                    paths,
                    criterion=criterion,
                    confidence=config.confidence,
                    direction="own",  # networks start, and so point, in different directions
                )
            )
            done += 1
            progress(done, total)
        names = xr.DataArray(list(CRITERIA), dims="criterion", name="criterion")
        rows.append(xr.concat(columns, names, combine_attrs="drop_conflicts", join="override"))
    labels = xr.DataArray(list(parts), dims="source", name="source")
    return xr.concat(rows, labels, combine_attrs="drop_conflicts", join="override")


def predict(
    config: DemoConfig, network: xr.Dataset, fits: dict[str, xr.Dataset], progress: Progress
) -> xr.Dataset:
    """Analytic separation probabilities of the models, averaged over the networks' starts."""
    frames = from_start(config, network)
    # Evenly in log time, where the probability changes.
    wanted = np.geomspace(
        max(frames.time.values[0], frames.time.values[1] / 10),
        frames.time.values[-1],
        config.predicted_times,
    )
    chosen = np.unique(np.abs(frames.time.values[:, None] - wanted).argmin(0))
    total = len(MODELS) * len(config.learning_rates) * frames.sizes["replicate"]
    done, by_model = 0, []
    for transform in MODELS:
        by_rate = []
        for index, rate in enumerate(config.learning_rates):
            one = frames.isel(learning_rate=index)
            model = make_model(config, transform, fits[transform], one, rate)
            each = []
            for initial in starts(one):
                # The fitted kernel jumps at the saved times only, so the law is made for all of them.
                law = model.law(frames.time.values, initial=initial).isel(time=chosen)
                each.append(predict_from_law(law))
                done += 1
                progress(done, total)
            # The replicates' starts differ: the probability is the mean over them.
            joined = xr.concat([part[PREDICTED] for part in each], "replicate", join="override")
            by_rate.append(joined.mean("replicate", skipna=False).assign_coords(learning_rate=rate))
        by_model.append(xr.concat(by_rate, "learning_rate"))
    names = xr.DataArray(list(MODELS.values()), dims="model", name="model")
    return xr.concat(by_model, names, join="override")


def analyse_collapse(
    config: DemoConfig, network: xr.Dataset, penultimate: xr.Dataset, simulated: xr.Dataset
) -> tuple[dict[str, xr.Dataset], xr.Dataset]:
    """Collapse metrics by source, and their convergence against time and iterations."""
    parts = sources(from_start(config, network), simulated)
    metrics = {name: lesde.neural_collapse(paths) for name, paths in parts.items()}
    metrics["network, last hidden layer"] = lesde.neural_collapse(from_start(config, penultimate))
    rates = [
        lesde.convergence(
            values, metrics=["nc1", "nc2_etf"], threshold=0.2, confidence=config.confidence
        )
        for values in metrics.values()
    ]
    labels = xr.DataArray(list(metrics), dims="source", name="source")
    return metrics, xr.concat(rates, labels, combine_attrs="drop_conflicts", join="override")


def compare(
    config: DemoConfig, network: xr.Dataset, law: xr.Dataset, fits: dict[str, xr.Dataset]
) -> xr.Dataset:
    """How well the linear model describes the networks, as numbers.

    Returns
    -------
    xarray.Dataset
        Over ``model`` and ``learning_rate``: ``r_squared``, share of the class means' increments that
        the fitted rates explain in networks they were not fitted to; ``mean_error``, relative error
        (root mean square over time) of the law's class means against the networks' average;
        ``inside``, share of the averaged class-mean coordinates within the law's interval at the
        given confidence (expected: the confidence); ``noise_ratio``, noise of the class means over
        what the spread within classes implies (expected: 1); ``within_r_squared``, share of the
        within-class variance's change that linear growth explains.
    """
    from scipy.stats import norm

    frames = from_start(config, network)
    z = norm.ppf(0.5 + config.confidence / 2)
    shape = (len(MODELS), len(config.learning_rates))
    names = (
        "r_squared",
        "r_squared_common",
        "r_squared_common_se",
        "mean_error",
        "inside",
        "noise_ratio",
        "within_r_squared",
    )
    out: dict[str, np.ndarray] = {name: np.full(shape, np.nan) for name in names}
    for i, (transform, label) in enumerate(MODELS.items()):
        for j in range(shape[1]):
            one = frames.isel(learning_rate=j)
            means = class_average(*by_class(one)).mean(0)[1:]
            exact = law.sel(model=label).isel(learning_rate=j, time=slice(1, None))
            expected = exact["mean"].transpose("time", "class", "feature").values
            C = exact["covariance"].values.reshape(len(expected), expected[0].size, -1)
            variance = np.diagonal(C, axis1=1, axis2=2) / one.sizes["replicate"]
            gap = np.abs(means - expected).reshape(len(expected), -1)
            sigma, explained = within_noise(one)
            fit = fits[transform].isel(learning_rate=j)
            out["r_squared"][i, j] = float(fit["r_squared"])
            for name in ("r_squared_common", "r_squared_common_se"):
                out[name][i, j] = float(fit[name])
            out["mean_error"][i, j] = np.sqrt((gap**2).sum() / (means**2).sum())
            out["inside"][i, j] = (gap <= z * np.sqrt(variance)).mean()
            out["noise_ratio"][i, j] = float(fit["residual_scale"]) / sigma if sigma else np.nan
            out["within_r_squared"][i, j] = explained
    coords: dict[str, Any] = {
        "model": list(MODELS.values()),
        "learning_rate": list(config.learning_rates),
    }
    return xr.Dataset({n: (("model", "learning_rate"), v) for n, v in out.items()}, coords)
