"""What `fit_elasticity` says of paths that do not determine rates, and whom it says it to."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr

import lesde
from lesde.model.transforms import logit_directions
from tests.analysis.test_elasticity_paths import dataset, projections, simulate_means, two_level

TIMES = np.linspace(0.0, 1.0, 5)
# A file of its own, so that a warning that points one level too high or too low is seen.
CALL = compile("lesde.fit_elasticity(paths, *arguments, **keywords)", "<the caller>", "exec")


def paths_from(initial, kind="identity", noise=0.0, replicates=8, seed=0):
    K = initial.shape[-2]
    rng = np.random.default_rng(seed)
    means = simulate_means(
        two_level(K, lambda t: 2.0, lambda t: -1.0), projections(kind, K, initial.shape[-1]),
        np.full(K, 10), initial, TIMES, noise, (replicates,), rng, substeps=20,
    )  # fmt: skip
    return dataset(means, TIMES, np.full(K, 10))


def told(paths, *arguments, **keywords):
    """Warnings of a fit, all of which must point at the call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(CALL, {"lesde": lesde, "paths": paths, "arguments": arguments, "keywords": keywords})
    assert {w.filename for w in caught} <= {"<the caller>"}
    return [str(w.message) for w in caught]


def centred(rng, shape=(3, 3)):
    x = rng.standard_normal(shape)
    return x - x.mean(-2, keepdims=True)


def test_words_of_what_is_not_identified_hold_for_either_transform():
    """For both models α − β is identified in these cases."""
    rng = np.random.default_rng(0)
    # With H = I no grand mean; with that of logits equal reach along the own directions.
    reach = 1.5 * logit_directions(3) + 0.0
    for kind, initial in (("identity", centred(rng)), ("logits", reach)):
        (message,) = (m for m in told(paths_from(initial, kind), kind) if "do not determine" in m)
        assert "do not determine α and β apart in 4 of 4 intervals" in message
        assert "α − β is still identified." in message
        fit = quietly(paths_from(initial, kind), kind)
        assert float(fit.A_minus_B[-1]) == pytest.approx(3.0, abs=1e-2)
        assert np.isinf(fit.A_se[-1])
    # A grand mean of zero is no obstacle for logits.
    uneven = np.diag([1.0, 2.0, 3.0]) @ logit_directions(3)
    uneven -= uneven.mean(0)
    assert not any("do not determine" in m for m in told(paths_from(uneven, "logits"), "logits"))


def quietly(*arguments, **keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lesde.fit_elasticity(*arguments, **keywords)


def test_nothing_is_said_of_the_difference_where_it_is_not_identified():
    still = paths_from(centred(np.random.default_rng(0)))
    still["features"] = 0 * still.features
    (message,) = (m for m in told(still) if "do not determine" in m)
    assert "α − β" not in message
    (message,) = (m for m in told(still, kernel="matrix") if "do not determine" in m)
    assert "every entry of E" in message
    assert "α − β" not in message


@pytest.mark.parametrize("estimator", ["likelihood", "averages"])
@pytest.mark.parametrize("kernel", ["two-level", "matrix"])
def test_warnings_point_at_the_caller(estimator, kernel):
    """Unknown rates and no tail index; `told` checks whom it is said to."""
    initial = centred(np.random.default_rng(1))
    messages = told(paths_from(initial, replicates=4), None, kernel, estimator=estimator)
    for words in ("do not determine", "tail_index"):
        assert any(words in m for m in messages), words


def test_rates_that_explain_less_than_nothing_are_told():
    """Class means that are noise at an early time, so that nothing tells where they go from there."""
    rng = np.random.default_rng(3)
    later = paths_from(3 * centred(rng) + 0.5, noise=0.05, replicates=12)
    assert not any("r_squared" in m for m in told(later, estimator="averages", tail=False))
    early = later.copy(deep=True)
    early.features[:, 1] = rng.standard_normal(early.features[:, 1].shape) * 0.02
    found = quietly(early, estimator="averages", tail=False)
    share = float(found.r_squared)
    assert share < -1
    (message,) = (m for m in told(early, estimator="averages", tail=False) if "r_squared" in m)
    assert (
        f"r_squared = {share:.3g} at worst, below -1 in 1 of 1 fits: the rates predict" in message
    )
    assert "paths.sel(time=slice(t, None))" in message
    assert int(found.r_squared_interval.argmin()) == 1
    both = xr.concat([early, later, early], "set")
    (message,) = (m for m in told(both, estimator="averages", tail=False) if "r_squared" in m)
    assert f"r_squared = {share:.3g} at worst, below -1 in 2 of 3 fits: " in message
    # The advice helps.
    late = early.sel(time=slice(0.5, None))
    assert not any("r_squared" in m for m in told(late, estimator="averages", tail=False))
