"""Rates from class means averaged over replicates, with jackknife errors.

The averages of replicates of a linear model obey the same LE-ODE, with noise smaller by the number of
replicates. Under the LE-SDE the likelihood of all replicates uses the data better. But in a network
noise and drift are not independent: what noise moved is pulled back by the non-linear dynamics, and a
fit to single networks takes that for (negative) elasticity. Averaging first leaves the movement that
the networks have in common.

Averages of R replicates still hold 1/R of what is noise in each, above all where class means are
themselves averages of a few draws. Noise in the first frame of an interval is gone in its last, so
the fit takes it for a pull toward zero, by an amount of order 1/R. The jackknife takes that off.

References
----------
Zhang, Wang, Su, NeurIPS 2021 (arXiv 2110.05960), who estimate from class means over trials.
Quenouille, *Notes on bias in estimation*, Biometrika 43 (1956), for the jackknife's correction of bias.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lesde.analysis.transition_fit import (
    TransitionFit,
    drivers_and_rows,
    fit_transitions,
    in_common,
)
from lesde.analysis.transition_flow import RateBasis, Steps
from lesde.analysis.transition_solver import drift_map

__all__ = ["fit_averages"]

LARGEST_CORRECTION = 0.5
"""Of the bias, in standard errors of a rate."""


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
    differences to fits of the averages without one replicate, made anew for each. ``rates`` are corrected for
    their bias by the jackknife; all else is that of the fit before.
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
        z, y = drivers_and_rows(basis, frames[:-1], frames[1:], of_whole["unit"][g])
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
    unit_variance = of_whole["unit_variance"] / R
    known = np.isfinite(unit_variance)
    of_whole |= {
        # The noise of an average, for one replicate.
        "noise": of_whole["noise"] * np.sqrt(R),
        "precision": of_whole["precision"] * R,
        "unit_variance": unit_variance,
        "deleted": deleted,
        "shares": np.repeat(np.where(known, unit_variance, 0.0)[:, :, None] / R, R, axis=2),
        "moved": moved,
        "residual": residual,
        "predicted_residual": predicted,
        "common_moved": common_moved,
        "common_residual": common_residual,
    }
    of_whole["rates"] = of_whole["rates"] + _correction(deleted, known)
    return TransitionFit(**of_whole)


def _correction(deleted: np.ndarray, known: np.ndarray) -> np.ndarray:
    """What the jackknife adds to the rates (g, t, f) against a bias of order 1/R.

    Where it is large against the standard error the bias is not of that order (the first frame is mostly
    noise), and it would add more noise than it removes; so it goes no further than ``LARGEST_CORRECTION``.
    All functionals of an interval are scaled alike, to keep α − β the difference of α and β.
    """
    R = deleted.shape[2]
    change = (R - 1) * deleted.mean(2)
    error = np.sqrt((R - 1) / R * (deleted**2).sum(2))
    known = known & np.isfinite(change) & (error > 0)
    size = np.where(known, np.abs(change) / np.where(known, error, 1.0), 0.0).max(-1, keepdims=True)
    scale = LARGEST_CORRECTION / np.maximum(size, LARGEST_CORRECTION)
    return np.where(known.all(-1, keepdims=True), change * scale, 0.0)


def _square(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Σ n_k|·|² over rows and columns."""
    return np.einsum("...oc,...oc,o->...", values, values, weight)
