"""Elasticity from paths: `fit_elasticity`, the kernel that best explains the motion of class means."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import xarray as xr

from lesde.analysis.class_means import read_class_means
from lesde.analysis.elasticity.recorded import choose_transform, read_clock, warn_of_features
from lesde.analysis.elasticity.result import TWO_LEVEL, ElasticityResult
from lesde.analysis.elasticity.transitions import fit_averages, fit_transitions, rate_basis
from lesde.checks import check_choice, check_finite_array, check_fraction, check_real

FEWEST_REPLICATES = 8
"""With fewer, a variance between replicates has too few degrees of freedom to be worth its robustness."""


def fit_elasticity(
    paths: xr.Dataset,
    transform: Any = None,
    kernel: str = "two-level",
    confidence: float = 0.95,
    *,
    smoothing: str | None = "reml",
    tail: float | tuple[float, float] | bool | None = None,
    tail_offset: float | None = None,
    scheme: str = "auto",
    errors: str = "auto",
    estimator: str = "likelihood",
) -> xr.Dataset:
    """Estimate α(t), β(t) and their integrals A, B, or a full matrix E(t), from features.

    The class means of a model with kernel E obey dX̄^k = Σ_l w_l E_kl(t) H_l X̄^l dt + noise. They are observed without
    error, so each interval between saved times is a Gaussian regression whose coefficients depend on the rates through
    the matrix exponential. The rates are those of maximum likelihood with E constant within an interval and noise of
    variance σ²/n_k per unit time.

    Parameters
    ----------
    paths : xarray.Dataset
        Variable ``features`` with dimensions ``time``, ``sample``, ``feature`` and any others; coordinates ``time`` and
        ``label(sample)``, integers 0 to K−1 with K ≥ 2, in any order, classes of any sizes. The dimension ``replicate`` is
        what the fit averages over; every other (``learning_rate``, …) is fitted separately and kept.
    transform : {"identity", "logits"} or array (p, p) or (K, p, p), optional
        The matrices H_l, as for a model. Default: those that `lesde.simulate` records with ``paths``, else "identity".
    kernel : {"two-level", "matrix"}, default "two-level"
        Estimate α and β, or all K² entries E_kl.
    confidence : float, default 0.95
        Level of all intervals.
    smoothing : {"reml"} or None, default "reml"
        How ``alpha``, ``beta``, ``E`` are computed from the raw rates, one per interval. "reml": a smoothing spline
        over the number of the interval, averaged over the amount of smoothing by restricted likelihood, with bands that
        include its bias on average over the curve. None, or fewer than 5 intervals: the raw rates themselves. Integrals
        and tail indices never use smoothed rates.
    tail : float, (float, float) or False, optional
        First time, or first and last, of the window for tail indices; False leaves them out. Default: from √(t₁ t_T) to the last
        time t_T, t₁ the first positive time: the second half in log t.
    tail_offset : float, optional
        s of the tail (t + s)^−r: 0 for a pure power of time, 1 for 1/(1+t)^r. Default: fitted, between 0 and the last
        time of the window. The index is then that of the best offset, if by Akaike's criterion it fits better than no
        offset; its limits are those over all offsets that the data allow, inf where the data do not bound them.
    scheme : {"auto", "exponential", "discrete"}, default "auto"
        Transition over an interval: e^{ΔM}, right for paths in continuous time, or (1 + (Δ/m) M)^m, right for m steps of
        SGD or of Euler's scheme. ``"auto"`` is discrete where ``paths`` has the coordinate ``iteration``, or attributes
        that record an integration by the engine "torchsde", whose own step is then taken. With exp, rates of such paths
        are too small by the relative amount ½·step·(growth rate).
    errors : {"auto", "replicate", "model"}, default "auto"
        ``"replicate"``: jackknife over replicates, with quantiles of Student's t (degrees of freedom: the effective
        number of replicates less one). It assumes only that replicates are independent: noise may differ between
        classes, and be correlated over classes (sampling noise of SGD) and time. ``"model"``: noise σ²/n_k per unit
        time, independent over classes, features and intervals, as in the LE-SDE, with quantiles for the residual degrees
        of freedom of each interval; with none left, errors are inf. ``"auto"``: ``"replicate"`` from 8 replicates on.
    estimator : {"likelihood", "averages"}, default "likelihood"
        ``"likelihood"``: every replicate is taken for a path of the LE-SDE, which uses the data best if it is one.
        ``"averages"``: class means are averaged over replicates first, as Zhang, Wang and Su do, with errors by the
        jackknife over replicates, which also removes the bias of the rates due to noise in the averages (at most half a
        standard error). Use it for recorded networks, whose non-linear dynamics pull noise back, which a fit to single
        networks mistakes for elasticity, and for class means of few samples, such as those of
        `lesde.networks.drawn_means`. It needs replicates with the same expected means.

    Returns
    -------
    xarray.Dataset
        Dimensions: those of the features other than replicate, time, sample and feature, then ``time`` (the saved
        times) or ``interval`` (coordinate: its midpoint; with ``start`` and ``end``). For each variable ``x`` below there are ``x_se``,
        ``x_lower`` and ``x_upper``.

        - ``A``, ``B``, ``A_minus_B (time)``: integrals from the first saved time, never smoothed.
        - ``alpha``, ``beta``, ``alpha_minus_beta (interval)``: smoothed rates; ``alpha_raw``, … are the
          raw ones, averages of the rate over each interval.
        - ``tail_index (level)``: r of the rate ~ (t + s)^{−r}, from the increments of the integral; where s is fitted
          ``_se`` is half the interval over the quantile. ``tail_offset (level)``: s, without errors;
          ``tail_offset_weight (level)``: Akaike weight of an offset against none, where it is fitted; ``log_slope_index
          (level)``: 1 − d log|A|/d log t. ``level`` is ``alpha``, ``beta`` or ``alpha_minus_beta``.
        - with ``kernel="matrix"``: ``E``, ``E_raw (interval, class, class_)``, ``E_integral (time, class, class_)`` and tail indices
          ``(class, class_)``; first the class moved, then the class drawn.

        and without errors:

        - ``residual_scale``, ``residual_scale_interval (interval)``: σ̂ of a sample, per √time.
        - ``r_squared``, ``r_squared_interval (interval)``: share of Σ n_k|ΔX̄^k|² that the fitted rates explain in
          replicates they were not fitted to, NaN for one replicate. Noise counts against it. At most 1; not above 0
          where the model predicts no better than "nothing moves", far below 0 where the rates are noise (see Notes).
        - ``r_squared_common``, ``r_squared_common_interval (interval)``: the same share of the movement that replicates
          have in common: 1 in expectation where the model is right, however large the noise. It looks one interval ahead
          from the observed means and leaves out errors that add up along a path. With ``_se``, ``_lower``, ``_upper`` by
          jackknife over replicates (without them per interval). It needs replicates whose class means move alike.
        - ``r_squared_in_sample``, ``r_squared_in_sample_interval``: as ``r_squared`` without leaving a replicate out.
        - ``identified (interval[, level or class, class_])``: whether the data determine the raw rate.

        Attributes say what was fitted and how.

    Warns
    -----
    UserWarning
        When a rate is not identified in some interval (its standard error is inf there, and that of its integral from there
        on), when no tail index can be given (NaN), when ``r_squared`` is below −1 in some group,
        when standard errors rely on the model because replicates are few,
        when ``transform`` is not that of the recorded model, and when that has a kernel that depends on the features.

    Notes
    -----
    Two-level with H = I: α − β acts on differences of class means, α + (K−1)β on the grand mean. Where the grand mean is
    near zero (for logits: where the mean logits of all classes reach equally far along their own directions) α and β are
    poorly determined alone, and their standard errors say so; α − β, on which separation depends, is not affected.

    Rates are relative to class means. Before the classes stand apart, as at the start of training, their means are
    small compared with their noise. The rates are then noise too (``r_squared`` far below 0), and so are all integrals
    from such a start. Leave out those times: ``paths.sel(time=slice(t, None))``.

    E varying within an interval biases the rates by the order of the squared interval (not at all for
    balanced classes with H = I, where the transitions commute). Errors ``"model"`` take the noise to be
    the same in all directions, which holds while growth within one interval is small.

    A tail index needs a rate that differs significantly from zero over the window, at ``confidence``.
    ``log_slope_index`` is the definition of Zhang, Wang and Su; it is at most 1 for a positive rate, and approaches r
    slowly. Use ``tail_index`` to decide whether r < 1.

    References
    ----------
    Zhang, Wang, Su, NeurIPS 2021 (arXiv 2110.05960), for A, B and the tail index; the estimator is the
    Gaussian likelihood of the class means.

    Examples
    --------
    >>> fit = lesde.fit_elasticity(paths, transform="logits")  # doctest: +SKIP
    >>> fit.A.plot(hue="learning_rate")  # doctest: +SKIP
    >>> float(fit.tail_index.sel(level="alpha"))  # doctest: +SKIP
    """
    check_choice("kernel", kernel, ("two-level", "matrix"))
    check_choice("scheme", scheme, ("auto", "exponential", "discrete"))
    check_choice("errors", errors, ("auto", "replicate", "model"))
    check_choice("estimator", estimator, ("likelihood", "averages"))
    if smoothing is not None:
        check_choice("smoothing", smoothing, ("reml",))
    confidence = check_fraction("confidence", confidence)
    window = None if tail is None or tail is False else _check_tail(tail)
    if tail_offset is not None:
        tail_offset = check_real("tail_offset", tail_offset)
    data = read_class_means(paths, scheme != "exponential")
    clock = read_clock(paths, data, scheme)
    R, K, p = data.values.shape[1], *data.values.shape[3:]
    fewest = 3 if estimator == "averages" else 2 if errors == "replicate" else 1
    if fewest > R:
        raise ValueError(
            f"estimator={estimator!r} with errors={errors!r} needs at least {fewest} replicates; paths has {R}. Use "
            f"estimator='likelihood' with errors='model'."
        )
    if estimator == "averages" and errors == "model":
        raise ValueError("errors='model' goes with estimator='likelihood'; leave errors out.")
    notes = []
    if errors == "auto" and estimator == "likelihood" and R < FEWEST_REPLICATES:
        errors = "model"
        notes.append(
            f"paths has {R} replicate(s), fewer than {FEWEST_REPLICATES}: standard errors assume the "
            f"noise of the LE-SDE. They are too small where other noise acts."
        )
    robust = errors != "model"
    H = choose_transform(paths, transform, K, p)
    warn_of_features(paths)
    basis = rate_basis(H, data.counts, kernel)
    functionals = TWO_LEVEL if kernel == "two-level" else np.eye(K * K)
    fitter = fit_transitions if estimator == "likelihood" else fit_averages
    fit = fitter(basis, functionals, data.values, clock)
    result = ElasticityResult(data, fit, kernel, robust, confidence)
    result.add_integrals()
    result.add_rates(smoothing)
    if tail is not False:
        result.add_tails(window, tail_offset)
    result.add_quality()
    for note in notes + result.notes:
        warnings.warn(note, UserWarning, stacklevel=2)
    return result.dataset.assign_attrs(
        transform=H.kind,
        kernel=kernel,
        method="Gaussian maximum likelihood of the class means, one interval at a time",
        estimator=estimator,
        scheme="exponential" if clock.counts is None else "discrete",
        errors="replicate" if robust else "model",
        smoothing=smoothing or "none",
        confidence=confidence,
        replicates=R,
    )


def _check_tail(tail: Any) -> float | tuple[float, float]:
    if isinstance(tail, np.ndarray) and tail.ndim:
        tail = tail.tolist()
    if not isinstance(tail, list | tuple):
        return check_real("tail", tail, 0.0)
    first, last = check_finite_array("tail", tail, [(2,)]).tolist()
    first = check_real("tail[0]", first, 0.0)
    return first, check_real("tail[1]", last, first, open_minimum=True)
