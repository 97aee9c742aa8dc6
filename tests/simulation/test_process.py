"""Any object that starts, advances and is observed goes through `simulate` and all that follows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import lesde

TIMES = [0.0, 0.5, 1.0, 2.0]
COUNTS = [3, 5, 4]
LABELS = np.repeat(np.arange(3), COUNTS)
PULL, NOISE = 1.5, 0.4


class ExactPull:
    """dx = −PULL (x − c_k) dt + NOISE dW, c_k = e_k, exactly, from x = 0."""

    counts = COUNTS

    def __init__(self, scale=1.0):
        self.scale = scale

    def at(self, learning_rate):
        return ExactPull(math.sqrt(learning_rate))

    def start(self, rng, replicates):
        return torch.zeros(replicates, len(LABELS), 3, dtype=rng.dtype)

    def advance(self, rng, x, t0, t1):
        decay = math.exp(-PULL * (t1 - t0))
        spread = self.scale * NOISE * math.sqrt((1 - decay**2) / (2 * PULL))
        centre = torch.eye(3, dtype=x.dtype)[LABELS]
        return centre + decay * (x - centre) + spread * rng.normal(*x.shape)

    def observe(self, rng, x):
        return {"features": x}


class WithClassifier(ExactPull):
    """The same, with a fixed classifier and one number per replicate."""

    def observe(self, rng, x):
        R = len(x)
        eye = torch.eye(3, dtype=x.dtype)
        return {
            "features": x,
            "weights": eye.expand(R, 3, 3),
            "bias": torch.zeros(R, 3),
            "norm": x.square().sum((1, 2)),
        }


def test_mean_and_variance_are_those_of_the_process():
    # Null: x(t) ~ N((1 − e^{−PULL t}) c, NOISE² (1 − e^{−2 PULL t})/(2 PULL)). 400 replicates × 12
    # samples × 3 features = 14,400 values a time; 4.5 standard errors at 6 comparisons.
    paths = lesde.simulate(ExactPull(), TIMES, replicates=400, seed=2, dtype="float64")
    centre = np.eye(3)[LABELS]
    for i, t in enumerate(TIMES[1:], start=1):
        away = paths.features.values[:, i] - (1 - math.exp(-PULL * t)) * centre
        variance = NOISE**2 * (1 - math.exp(-2 * PULL * t)) / (2 * PULL)
        assert abs(away.mean()) < 4.5 * math.sqrt(variance / away.size)
        assert abs(away.var() / variance - 1) < 4.5 * math.sqrt(2 / away.size)


def test_learning_rate_reaches_the_process_and_without_it_rates_are_copies():
    rates = [0.25, 1.0]
    paths = lesde.simulate(ExactPull(), TIMES, replicates=300, learning_rate=rates)
    spread = paths.features.isel(time=-1).std("replicate").mean(("sample", "feature"))
    # 300 replicates × 36 values: 0.7 % is one standard error.
    np.testing.assert_allclose(spread[1] / spread[0], 2, rtol=0.04)

    class Plain(ExactPull):
        at = None

    copies = lesde.simulate(Plain(), TIMES, replicates=300, learning_rate=rates)
    spread = copies.features.isel(time=-1).std("replicate").mean(("sample", "feature"))
    np.testing.assert_allclose(spread[1] / spread[0], 1, rtol=0.04)
    assert not np.array_equal(copies.features[0], copies.features[1])


def test_replicates_do_not_depend_on_how_many_there_are_or_on_memory(monkeypatch):
    whole = lesde.simulate(ExactPull(), TIMES, replicates=100, seed=5)
    part = lesde.simulate(ExactPull(), TIMES, replicates=36, first_replicate=64, seed=5)
    np.testing.assert_array_equal(whole.features[64:], part.features)
    np.testing.assert_array_equal(whole.replicate[64:], part.replicate)
    large = lesde.simulate(ExactPull(), TIMES, replicates=40, seed=5, memory_limit="2 MB")
    np.testing.assert_array_equal(whole.features[:40], large.features)
    with pytest.raises(ValueError, match=r"the result needs .* of memory_limit"):
        lesde.simulate(ExactPull(), TIMES, replicates=100, memory_limit=1000)


def test_statistics_are_those_of_the_features():
    features = lesde.simulate(WithClassifier(), TIMES, replicates=40, seed=1)
    kept = lesde.simulate(WithClassifier(), TIMES, replicates=40, seed=1, keep="statistics")
    reduced = lesde.statistics(features.drop_vars(["weights", "bias", "norm"]))
    for name in ("mean", "within", "reach"):
        np.testing.assert_allclose(kept[name], reduced[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(kept["count"], COUNTS)
    np.testing.assert_allclose(
        features["norm"],
        (features.features.astype(float) ** 2).sum(("sample", "feature")),
        rtol=1e-5,
    )
    found = lesde.neural_collapse(features)
    np.testing.assert_allclose(
        lesde.neural_collapse(kept)["nc3"], found["nc3"], rtol=1e-4, atol=1e-6
    )
    assert "nc4" in found


def test_process_draws_its_own_statistics():
    class Reduced(ExactPull):
        def reduce(self, rng, x):
            mean = torch.stack([part.mean(1) for part in x.split(COUNTS, 1)], 1)
            R = len(x)
            reach = torch.zeros(R, 3, 3)
            return {"mean": mean, "within": torch.zeros(R, 3, 3, 3), "reach": reach}

        def observe(self, rng, x):
            raise AssertionError("not asked for")

    kept = lesde.simulate(Reduced(), TIMES, replicates=5, keep="statistics")
    features = lesde.simulate(ExactPull(), TIMES, replicates=5)
    expected = features.features.groupby("label").mean().rename(label="class")
    np.testing.assert_allclose(
        kept["mean"], expected.transpose(*kept["mean"].dims), rtol=1e-5, atol=1e-6
    )


def test_separation_adds_replicates_until_the_interval_is_narrow():
    found = lesde.separation_probability(
        ExactPull(), "nearest_center", precision=0.05, times=TIMES, replicates=32, seed=4
    )
    assert float(found.upper.max() - found.lower.min()) <= 1
    assert float((found.upper - found.lower).max()) <= 0.1
    assert int(found.trials) % 32 == 0
    paths = lesde.simulate(ExactPull(), TIMES, replicates=int(found.trials), seed=4)
    again = lesde.separation_probability(paths, "nearest_center")
    np.testing.assert_array_equal(again.successes, found.successes)


def test_other_attributes_of_a_process_have_no_meaning():
    """A dynamics may call what it likes n_features, say of its inputs: its observations decide."""
    given = {"times": [0, 1, 2], "precision": 0.1, "learning_rate": [0.1, 0.2]}
    plain, other = ExactPull(), ExactPull()
    other.n_features = 10**12
    found = [lesde.separation_probability(process, **given) for process in (plain, other)]
    np.testing.assert_array_equal(*(each.successes for each in found))


class Broken(ExactPull):
    """What is given in place of the features."""

    def __init__(self, seen):
        self.seen = seen

    def observe(self, rng, x):
        return self.seen(x)


@pytest.mark.parametrize(
    ("process", "arguments", "error", "words"),
    [
        (object(), {}, TypeError, "a lesde.LESDE, or a process with start, advance, observe and counts"),
        (ExactPull(), {"engine": "exact"}, ValueError, "engine is for a lesde.LESDE"),
        (ExactPull(), {"engine": lesde.TorchSDE(dt=0.1)}, ValueError, "engine is for a lesde.LESDE"),
        (ExactPull(), {"initial": [[0.0]]}, ValueError, "initial is for a lesde.LESDE"),
        (Broken(lambda x: {}), {}, ValueError, "observe must give 'features'"),
        (Broken(lambda x: {"features": x[:, :5]}), {}, ValueError, r"shape \(32, 12, 3\); got \(32, 5, 3\)"),
        (Broken(lambda x: {"features": x.numpy()}), {}, ValueError, "features of the process must be a tensor"),
        (Broken(lambda x: {"features": x / 0}), {}, lesde.Diverged, "the features stopped being finite"),
        (type("Empty", (ExactPull,), {"counts": [3, 0]})(), {}, ValueError, "process.counts must hold"),
    ],
)  # fmt: skip
def test_errors_say_what_a_process_lacks(process, arguments, error, words):
    with pytest.raises(error, match=words):
        lesde.simulate(process, TIMES, replicates=4, **arguments)


def test_random_numbers_have_the_replicates_first():
    class Wrong(ExactPull):
        def advance(self, rng, x, t0, t1):
            return x + rng.normal(*x.shape[1:])

    with pytest.raises(
        ValueError, match="first axis of random numbers is that of the 32 replicates"
    ):
        lesde.simulate(Wrong(), TIMES, replicates=4)


class Fickle:
    """A process whose observation changes on the way."""

    counts = (2, 2)

    def __init__(self, change):
        self.change = change

    def start(self, rng, replicates):
        return rng.normal(replicates, 4, 3)

    def advance(self, rng, state, t0, t1):
        return state.clone()

    def observe(self, rng, state):
        return self.change(state)


@pytest.mark.parametrize(
    "later",
    [
        lambda x: {"features": x[:2]},
        lambda x: {"features": x[..., :1]},
        lambda x: {"features": x, "loss": x[:, 0, 0]},
        lambda x: {"weights": x[:, :2]},
    ],
)
def test_an_observation_that_changes_on_the_way_is_refused(later):
    """Never padded with what was in memory, broadcast or dropped."""
    process = Fickle(None)
    seen = []

    def change(x):
        seen.append(1)
        return {"features": x} if len(seen) <= 2 else later(x)

    process.change = change
    with pytest.raises(ValueError, match=r"must (give|be)"):
        lesde.simulate(process, [0, 1, 2], replicates=32)
