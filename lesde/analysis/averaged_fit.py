"""Rates from class means averaged over replicates, with jackknife errors.

The averages of replicates of a linear model obey the same LE-ODE, with noise smaller by the number of
replicates. Under the LE-SDE the likelihood of all replicates uses the data better. But in a network
noise and drift are not independent: what noise moved is pulled back by the non-linear dynamics, and a
fit to single networks takes that for (negative) elasticity. Averaging first leaves the movement that
the networks have in common.

References
----------
Zhang, Wang, Su, NeurIPS 2021 (arXiv 2110.05960), who estimate from class means over trials.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lesde.analysis.transition_fit import TransitionFit, fit_transitions, in_common
from lesde.analysis.transition_flow import RateBasis, Steps
from lesde.analysis.transition_solver import drift_map

__all__ = ["fit_averages"]


def fit_averages(
    basis: RateBasis,
    functionals: np.ndarray,
    means: np.ndarray,
    widths: np.ndarray,
    steps: Steps | None,
    counts: np.ndarray,
) -> TransitionFit:
    """Fit the rates to class means averaged over replicates.

    Parameters and result as for :func:`lesde.analysis.transition_fit.fit_transitions`; ``deleted`` are
    differences to fits of the averages without one replicate, made anew for each.
    """
    G, R, T = means.shape[:3]
    q = basis.output.shape[0]
    whole = means.mean(1, keepdims=True)
    without = (R * whole - means) / (R - 1)
    # All averages are groups of one replicate: first the whole ones, then those without one.
    groups = np.concatenate([whole, without.reshape(G * R, 1, *means.shape[2:])])
    every = None if steps is None else steps.with_repeats(R)
    fit = fit_transitions(basis, functionals, groups, widths, every, counts)
    of_whole = {f.name: getattr(fit, f.name)[:G] for f in dataclasses.fields(fit)}
    left = np.moveaxis(fit.rates[G:].reshape(G, R, T - 1, -1), 1, 2)
    deleted = of_whole["rates"][:, :, None] - left

    weight = counts[basis.row_class].astype(float)
    shape = (G, T - 1)
    residual, predicted, moved = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    common_moved, common_residual = np.zeros((*shape, R)), np.zeros((*shape, R))
    for g in range(G):
        frames = means[g].swapaxes(0, 1)
        y = basis.rows(np.diff(frames, axis=0))
        z = basis.drivers(frames[:-1])
        n = None if steps is None else steps[g]
        e = y - drift_map(basis, of_whole["rates"][g, :, :q], widths, n)[:, None] @ z
        for r in range(R):
            L = drift_map(basis, left[g, :, r, :q], widths, n)
            predicted[g] += _square(y[:, r] - L @ z[:, r], weight)
        own_y, own_e = _square(y, weight), _square(e, weight)
        moved[g], residual[g] = own_y.sum(1), own_e.sum(1)
        # The average's fit absorbs the noise of q directions, for all replicates together.
        size = y.shape[-2] * y.shape[-1]
        absorbed = own_e.sum(1) / (R * size) * q
        common_moved[g] = in_common(y, own_y, weight)
        common_residual[g] = in_common(e, own_e, weight) + absorbed[:, None]
    of_whole |= {
        "deleted": deleted,
        "shares": np.repeat(
            np.where(np.isfinite(of_whole["model_variance"]), of_whole["model_variance"], 0.0)[
                :, :, None
            ]
            / R,
            R,
            axis=2,
        ),
        "noise": of_whole["noise"] * np.sqrt(R),  # the noise of an average, for one replicate
        "moved": moved,
        "residual": residual,
        "predicted_residual": predicted,
        "common_moved": common_moved,
        "common_residual": common_residual,
    }
    return TransitionFit(**of_whole)


def _square(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Σ n_k|·|² over rows and columns."""
    return np.einsum("...oc,...oc,o->...", values, values, weight)
