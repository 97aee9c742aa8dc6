"""What the figures of the published experiments show, from the trainings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import t as student

import lesde
from lesde.analysis.fitted_kernel import fitted_kernel
from lesde.analysis.published_ratios import published_elasticity
from lesde.networks import drawn_means
from lesde.study.reproduce_protocol import Protocol
from lesde.study.reproduce_transition import pseudo_values

__all__ = [
    "ESTIMATOR",
    "MODELS",
    "RANGES",
    "contrast",
    "drawn_paths",
    "first_known",
    "fit_models",
    "mean_interval",
    "measure_level",
    "run_odes",
]

ESTIMATOR = "averages"
"""How kernels are fitted; see `lesde.fit_elasticity`."""

MODELS = {"identity": "I-model", "logits": "L-model"}

TAIL = 0.1
"""Last share of training that tail indices are averaged over: 1,000 of 10,000 iterations in the paper."""

SPREAD = 1.5
"""Standard deviations between trials that their contrast must be from zero for the fit to start."""


RANGES = {"accuracy": (0.0, 1.0), "loss": (0.0, np.inf)}
"""Possible values, where they are bounded."""


def drawn_paths(trained: xr.Dataset, windows: int) -> xr.Dataset:
    """Class means of the drawn training samples of each trial, over windows of training."""
    drawn = xr.Dataset(
        {"features": trained["drawn_logits"].rename(None)},
        coords={
            "label": trained["drawn_label"].astype(np.int64),
            "iteration": ("draw", trained["draw_iteration"].values),
            "time": ("draw", trained["draw_time"].values),
        },
    )
    return drawn_means(drawn.drop_vars(["draw_iteration", "draw_time"], errors="ignore"), windows)


def contrast(means: np.ndarray) -> np.ndarray:
    """A class's own logit less the mean of the others, averaged over classes, of (..., class, K)."""
    K = means.shape[-1]
    own = np.einsum("...kk->...k", means)
    return (own - (means.sum(-1) - own) / (K - 1)).mean(-1)


def first_known(paths: xr.Dataset) -> int:
    """The first window from which on the classes' contrast is well beyond its spread between trials.

    Rates are relative to the class means, so that nothing can be said of them before these differ by more
    than chance; and while some trials have left the plateau at the start and others have not, their average is the
    path of none. However many trials there are, it is the same window but for chance; at the latest
    that in the middle.
    """
    values = contrast(paths["features"].transpose("replicate", "time", "sample", "feature").values)
    unknown = np.flatnonzero(values.mean(0) <= SPREAD * values.std(0, ddof=1))
    first = int(unknown[-1]) + 1 if len(unknown) else 0
    return min(first, values.shape[1] // 2)


def fit_models(
    paths: xr.Dataset, protocol: Protocol
) -> tuple[dict[str, xr.Dataset], dict[str, list[str]]]:
    """Fits of both models to class means from `first_known` on, and what was warned of."""
    part = paths.isel(time=slice(first_known(paths), None))
    fits, notes = {}, {}
    for transform, name in MODELS.items():
        with noted() as seen:
            fits[name] = lesde.fit_elasticity(
                part, transform=transform, estimator=ESTIMATOR, confidence=protocol.confidence
            )
        notes[name] = seen
    return fits, notes


def run_odes(fits: dict[str, xr.Dataset], paths: xr.Dataset) -> dict[str, xr.Dataset]:
    """The LE-ODE of each fit from the class means at its start: ``mean (time, class, feature)``."""
    transforms = {name: transform for transform, name in MODELS.items()}
    laws = {}
    for name, fit in fits.items():
        times = fit["time"].values
        start = paths["features"].sel(time=times[0]).mean("replicate")
        initial = start.transpose("sample", "feature").values
        model = lesde.LESDE(
            fitted_kernel(fit),
            n_classes=len(initial),
            n_features=initial.shape[1],
            transform=transforms[name],
            noise=0.0,
        )
        laws[name] = model.law(times, initial=initial)[["mean"]]
    return laws


def measure_level(trained: xr.Dataset, protocol: Protocol) -> tuple[xr.Dataset, list[str]]:
    """What figure 4 shows of one noise level, each trial's; and what was warned of.

    ``loss``, ``accuracy (replicate, time)`` on the validation images; ``contrast (replicate, time)`` of the
    class means of the validation images, by their right labels; ``tail_index (replicate, model, rate)``, ``A_minus_B
    (replicate, model)``: pseudo-values of the published tail indices of Â and B̂, and of Â − B̂ in the tail, which are of all
    trials together.
    """
    paths = drawn_paths(trained, protocol.windows)
    X = trained["validation_mean"].transpose("replicate", "time", "class", "feature").values
    level = trained[["loss", "accuracy"]].assign(contrast=(("replicate", "time"), contrast(X)))
    numbers, seen = [], []
    for transform, name in MODELS.items():
        with noted() as said:
            whole = _published(paths, transform)
        with noted():  # without one trial each says the same again
            without = [
                _published(paths.drop_sel(replicate=r), transform)
                for r in paths["replicate"].values
            ]
        numbers.append(pseudo_values(whole, np.stack(without)))
        seen += [f"{name}: {message}" for message in said]
    together = np.stack(numbers, axis=1)
    level["tail_index"] = (("replicate", "model", "rate"), together[..., :2])
    level["A_minus_B"] = (("replicate", "model"), together[..., 2])
    level = level.assign_coords(model=list(MODELS.values()), rate=["alpha", "beta"])
    return level, seen


def _published(paths: xr.Dataset, transform: str) -> np.ndarray:
    """Tail indices of Â and B̂, and Â − B̂ averaged over the tail, by the published inversion."""
    found = published_elasticity(paths, transform, tail=TAIL)
    end = found["time"].values > (1 - TAIL) * found["time"].values[-1]
    difference = found["A_minus_B"].values[end].mean()
    return np.append(found["tail_index"].values, difference)


def mean_interval(
    values: np.ndarray, confidence: float, within: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[Any, Any, Any]:
    """Mean over the first axis, and the ends of its interval by Student's t; NaN are left out.

    ``within`` is the range of possible values, to which the interval is cut.
    """
    number = np.isfinite(values).sum(0)
    mean = np.nanmean(values, axis=0)
    error = np.nanstd(values, axis=0, ddof=1) / np.sqrt(number)
    reach = student.ppf((1 + confidence) / 2, number - 1) * error
    return mean, np.maximum(mean - reach, within[0]), np.minimum(mean + reach, within[1])


@contextmanager
def noted() -> Iterator[list[str]]:
    """Collect the warnings of the package, each once, for the report; others go their way."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield said
    said += list(dict.fromkeys(str(w.message) for w in caught))
