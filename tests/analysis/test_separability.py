"""Counting separated trajectories: shapes, intervals, streaming, precision, messages."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr
from scipy.optimize import linprog

import lesde
from lesde import separation_probability
from lesde.analysis.separation import CRITERIA, binomial_interval, criterion, probability

GAPS = np.array([0.5, 2.0, 4.0])


def make_paths(R=40, n=6, p=3, K=3, seed=0, shuffle=False):
    """Classes that move apart: class k is at gap·k on the first axis."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(K), n)
    if shuffle:
        labels = rng.permutation(labels)
    x = rng.standard_normal((R, len(GAPS), len(labels), p))
    x[..., 0] += GAPS[:, None] * 1.4 * labels
    return xr.Dataset(
        {"features": (("replicate", "time", "sample", "feature"), x.astype(np.float32))},
        coords={"time": [0.0, 1.0, 3.0], "label": ("sample", labels)},
    )


def by_hand(paths, k, l, t):
    """Share of replicates whose classes k and l do not overlap along the ensemble gap."""
    x = paths["features"].values[:, t].astype(float)
    labels = paths["label"].values
    nu = x[:, labels == k].mean(axis=(0, 1)) - x[:, labels == l].mean(axis=(0, 1))
    return (x[:, labels == k] @ nu).min(axis=1) > (x[:, labels == l] @ nu).max(axis=1)


@pytest.mark.parametrize("shuffle", [False, True])
def test_counts_by_hand(shuffle):
    paths = make_paths(shuffle=shuffle)
    out = separation_probability(paths)
    for t in range(3):
        pairs = {(k, l): by_hand(paths, k, l, t) for k in range(3) for l in range(k + 1, 3)}
        for (k, l), apart in pairs.items():
            assert (
                float(out["pairwise"][t, k, l]) == float(out["pairwise"][t, l, k]) == apart.mean()
            )
        every = np.all(list(pairs.values()), axis=0)
        assert int(out["successes"][t]) == every.sum()
        assert float(out["probability"][t]) == every.mean()
    assert int(out["trials"]) == 40
    assert np.isnan(out["pairwise"].values[:, [0, 1, 2], [0, 1, 2]]).all()
    assert 0 < int(out["successes"].values[1]) < 40
    lower, upper = binomial_interval(out["successes"].values, 40, 0.95)
    np.testing.assert_allclose(out["lower"], lower)
    np.testing.assert_allclose(out["upper"], upper)
    assert out["lower"].dims == ("time",)
    assert out["pairwise_upper"].dims == ("time", "class", "class_")
    assert out.attrs == {
        "criterion": "projection",
        "confidence": 0.95,
        "interval": "wilson",
        "direction": "ensemble",
    }


def test_other_dimensions_are_kept_and_missing_ones_are_not_needed():
    paths = make_paths()
    doubled = xr.concat([paths, make_paths(seed=1)], "learning_rate").assign_coords(
        learning_rate=[0.1, 0.2]
    )
    doubled = doubled.transpose("feature", "time", "learning_rate", "sample", "replicate")
    out = separation_probability(doubled, criterion="nearest_center")
    assert set(out["probability"].dims) == {"learning_rate", "time"}
    np.testing.assert_array_equal(out["learning_rate"], [0.1, 0.2])
    single = separation_probability(paths, criterion="nearest_center")
    xr.testing.assert_allclose(
        out["pairwise"].sel(learning_rate=0.1, drop=True).transpose(*single["pairwise"].dims),
        single["pairwise"],
    )
    alone = separation_probability(paths.isel(replicate=0, time=2))
    assert alone["probability"].dims == ()
    assert int(alone["trials"]) == 1


def test_directions():
    paths = make_paths(R=200)
    own = separation_probability(paths, direction="own")["probability"]
    ensemble = separation_probability(paths)["probability"]
    # each replicate's own gap follows its noise, and separates more often
    assert float(own[1]) > float(ensemble[1])
    axis = separation_probability(paths, direction=[-2.0, 0.0, 0.0])
    given = np.zeros((3, 3, 3))
    given[..., 0] = -1.0
    same = separation_probability(paths, direction=given)
    xr.testing.assert_equal(axis["probability"], same["probability"])
    x = paths["features"].values[:, 2, :, 0]
    labels = paths["label"].values
    apart = x[:, labels == 2].min(axis=1) > x[:, labels == 1].max(axis=1)
    assert float(axis["pairwise"][2, 1, 2]) == apart.mean()
    moved = paths.copy(deep=True)
    moved["features"][:, 2] = moved["features"][:, 2].values[..., [1, 0, 2]]
    initial = separation_probability(moved, direction="initial")["probability"]
    assert float(initial[2]) < 0.02 < float(ensemble[2])
    np.testing.assert_allclose(initial[0], ensemble[0])


def test_margins():
    paths = make_paths()
    for name in CRITERIA:
        out = separation_probability(paths, criterion=name, margin=True)
        assert out["margin"].dims == ("time", "replicate", "class", "class_")
        share = (out["margin"] > 0).mean("replicate").where(~np.eye(3, dtype=bool))
        np.testing.assert_allclose(share, out["pairwise"])
        np.testing.assert_allclose(out["margin_mean"], out["margin"].mean("replicate"))
        np.testing.assert_allclose(out["margin_std"], out["margin"].std("replicate"), atol=1e-6)


def test_linear_separates_at_least_as_often_as_any_direction():
    paths = make_paths(R=60)
    best = separation_probability(paths, criterion="linear")["pairwise"]
    for options in ({}, {"direction": "own"}, {"criterion": "nearest_center"}):
        other = separation_probability(paths, **options)["pairwise"]
        assert (best.values[~np.isnan(best)] >= other.values[~np.isnan(other)]).all()


def test_linear_warns_where_every_labelling_is_separable():
    few = make_paths(R=4, n=2, p=3, K=2)  # 4 points in 3 dimensions
    with pytest.warns(UserWarning, match="linearly separable whatever their labels"):
        out = separation_probability(few, criterion="linear")
    np.testing.assert_array_equal(out["probability"], 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        separation_probability(make_paths(R=4, n=3, p=3, K=2), criterion="linear")


def test_a_new_criterion_is_one_function():
    @criterion("first_feature")
    def first_feature(frame):
        scores = frame.scores()
        for k, l in frame.pairs():
            gap = frame.means[:, k, 0] - frame.means[:, l, 0]
            scores[:, k, l] = scores[:, l, k] = np.abs(gap) - 1.0
        return scores

    try:
        out = separation_probability(make_paths(), criterion="first_feature")
        assert float(out["probability"][-1]) == 1.0
        # it reads class means only, so that statistics of the classes serve as well
        reduced = separation_probability(lesde.statistics(make_paths()), "first_feature")
        np.testing.assert_array_equal(reduced["pairwise"], out["pairwise"])
    finally:
        del CRITERIA["first_feature"]


@pytest.fixture
def fake(monkeypatch):
    """A simulator whose replicates depend on their number alone, and a record of its calls."""
    calls = []

    def simulate(model, times, replicates, first_replicate=0, seed=0, **options):
        assert first_replicate % 32 == 0
        calls.append((first_replicate, replicates))
        one = [
            make_paths(R=1, K=2, seed=1000 * seed + first_replicate + r) for r in range(replicates)
        ]
        return xr.concat(one, "replicate")

    monkeypatch.setattr(probability, "simulate", simulate)
    model = lesde.LESDE(lesde.TwoLevel(1, 0), n_classes=2, n_features=3, n_per_class=6)
    return model, calls


def test_a_model_is_simulated_in_batches_and_only_counted(fake, monkeypatch):
    model, calls = fake
    axis = [1.0, 0.0, 0.0]
    whole = separation_probability(
        model, times=[0, 1, 3], replicates=100, direction=axis, margin=True
    )
    monkeypatch.setattr(probability, "BATCH_BYTES", 1)
    calls.clear()
    parts = separation_probability(
        model, times=[0, 1, 3], replicates=100, direction=axis, margin=True
    )
    assert calls == [(0, 32), (32, 32), (64, 32), (96, 4)]
    assert "margin" not in parts
    xr.testing.assert_allclose(whole, parts)


def test_precision_adds_replicates_until_it_is_reached(fake):
    model, calls = fake
    out = separation_probability(model, times=[0, 1, 3], replicates=64, precision=0.06)
    half = float(((out["upper"] - out["lower"]) / 2).max())
    assert half <= 0.06
    assert int(out["trials"]) == sum(n for _, n in calls)
    assert 64 < int(out["trials"]) < 600
    # replicates continue the stream without a hole
    assert [first for first, _ in calls] == list(np.cumsum([0, *(n for _, n in calls)])[:-1])
    # and not many more than needed: two blocks fewer would not have done
    fewer = int(out["trials"]) - 64
    lower, upper = binomial_interval(out["probability"].values * fewer, fewer)
    assert ((upper - lower) / 2).max() > 0.06


def test_precision_out_of_reach_warns(fake):
    model, _ = fake
    with pytest.warns(UserWarning, match=r"precision=0.01 was not reached with 96 replicates"):
        out = separation_probability(
            model, times=[0, 1, 3], replicates=32, precision=0.01, max_replicates=96
        )
    assert int(out["trials"]) == 96


def test_precision_of_a_dataset_is_checked():
    paths = make_paths()
    assert int(separation_probability(paths, precision=0.2)["trials"]) == 40
    with pytest.warns(UserWarning, match=r"not reached with 40 replicates; about \d+ more"):
        separation_probability(paths, precision=0.01)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"criterion": "linaer"}, ValueError, "Did you mean 'linear'"),
        ({"interval": "wald"}, ValueError, "interval must be one of 'wilson', 'clopper-pearson'"),
        ({"confidence": 95}, ValueError, "confidence must be a finite number"),
        ({"precision": 0}, ValueError, "precision must be a finite number"),
        ({"max_replicates": 0}, ValueError, "max_replicates must be an integer of at least 1"),
        (
            {"direction": "mean"},
            ValueError,
            "direction must be one of 'ensemble', 'own', 'initial'",
        ),
        ({"direction": [1.0, 0.0]}, ValueError, r"direction must have shape \(3\) or \(3, 3, 3\)"),
        ({"direction": [0.0, 0, 0]}, ValueError, "direction must hold vectors other than zero"),
        ({"replicates": 5}, TypeError, "replicates: keywords of the simulation need a model"),
    ],
)
def test_errors(change, error, message):
    with pytest.raises(error, match=message):
        separation_probability(make_paths(), **change)


def test_errors_of_the_data(fake):
    model, _ = fake
    paths = make_paths()
    with pytest.raises(
        TypeError, match=r"paths must be an xarray\.Dataset of trajectories, or a lesde\.LESDE"
    ):
        separation_probability(np.zeros((3, 4)))
    with pytest.raises(TypeError, match="times is required with a model"):
        separation_probability(model)
    with pytest.raises(ValueError, match=r"replicates must be .* at most 10; got 32"):
        separation_probability(model, times=[0, 1, 3], replicates=32, max_replicates=10)
    with pytest.raises(ValueError, match="label missing"):
        separation_probability(paths.drop_vars("label"))
    with pytest.raises(ValueError, match="at least 2 classes"):
        separation_probability(paths.isel(sample=paths["label"].values == 0))
    broken = paths.copy(deep=True)
    broken["features"][3, 1, 0, 0] = np.nan
    with pytest.raises(
        ValueError, match=r"paths must be finite; got a NaN or infinity at time=1.0"
    ):
        separation_probability(broken)


def test_random_starts_are_projected_on_their_own_gaps():
    """Means drawn for every replicate have no direction in common; by default each has its own."""
    model = lesde.LESDE(lesde.TwoLevel(6, -3), 3, 3, 5, noise=0.05)
    paths = lesde.simulate(model, [0, 1, 2], replicates=64)
    result = separation_probability(paths)
    assert result.attrs["direction"] == "own"
    assert float(result.probability[-1]) > 0.9
    with pytest.warns(UserWarning, match="direction='ensemble' is noise. Use direction='own'"):
        separation_probability(paths, direction="ensemble")
    given = lesde.simulate(model, [0, 1], initial=np.eye(3), replicates=32)
    assert separation_probability(given).attrs["direction"] == "ensemble"


# Three sets of 2 × 8 points in 4 dimensions, in units of 1e-5, on which HiGHS's simplex ends without an answer.
HARD = """
    -62389 28330 -28164 78946 -68739 15729 -47623 74228 -59166 60398 -56341 97910 -67375 17583 -42243 96784
    77110 -24211 35225 -131518 25395 -22067 25170 -32619 5345 -10556 12989 -7138 101365 -65683 71328 -129171
    -78077 106491 -96670 104688 89030 -58601 63833 -113493 84302 -55887 60961 -107485 -61665 26805 -28215 77887
    15463 -15203 18234 -21396 87089 -49604 55650 -105667 -23009 5286 -4318 28339 -64679 41191 -39814 89706
    -27979 -49670 127359 -8796 -35089 -60105 133049 -3245 -20520 -35784 107554 -15755 -49029 -88858 183255 10842
    35695 68872 -41722 -68200 -47394 -52240 58686 20574 23181 79318 -81485 -14554 -32518 25179 -146052 71798
    35695 68872 -41722 -68200 4490 12435 -12031 7737 86648 -97716 -147181 12920 26198 -52206 24293 -22867
    -29151 36533 -62977 100787 -37106 19046 -33804 106324 36509 67365 -39638 -66133 30371 58960 -27584 -63233
    41441 93719 166118 113698 -16438 39662 161062 153935 -25698 49959 163437 159504 8306 -6020 43700 36965
    -33706 52923 -132875 -123690 14311 -9690 22791 22227 19895 36006 -59872 -86185 -12187 -47358 -3127 23478
    -12873 17048 -98421 -96969 1112 -44504 -13943 -2844 27804 -36779 -71072 -65620 -11213 5020 -62824 -59060
    1809 -46086 -17771 -6559 1809 -46086 -17771 -6559 1809 -46086 -17771 -6559 -6181 -11729 -61661 -55760
"""


def test_linear_where_the_simplex_method_ends_without_an_answer():
    """The first two sets cannot be separated, the third can: by a program with a margin of 1 each."""
    points = np.array(HARD.split(), dtype=float).reshape(3, 16, 4) / 1e5
    paths = lesde.from_arrays(points[:, None], np.repeat([0, 1], 8), [0.0])
    signs = np.repeat([1.0, -1.0], 8)
    right = []
    for x in points:
        rows = -signs[:, None] * np.column_stack([x, np.ones(16)])
        program = linprog(np.zeros(5), rows, -np.ones(16), bounds=(None, None), method="highs-ipm")
        right.append(program.status == 0)
    assert right == [False, False, True]
    found = separation_probability(paths, criterion="linear")
    assert float(found["probability"].squeeze()) == np.mean(right)
