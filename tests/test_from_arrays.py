"""`lesde.from_arrays`: plain arrays become paths that every analysis takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lesde

RNG = np.random.default_rng(3)
LABELS = np.array([2, 0, 1, 0, 2, 1, 1, 0, 2])
FRAMES = RNG.normal(size=(4, 9, 2)) + 3 * np.eye(3, 2)[LABELS]
TIMES = [0.0, 0.5, 1.0, 2.0]


def nc1(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """tr(Σ_W)/tr(Σ_B) of frames (..., sample, feature), from its definition."""
    means = np.stack([features[..., labels == k, :].mean(-2) for k in np.unique(labels)], -2)
    inverse = np.unique(labels, return_inverse=True)[1]
    within = ((features - means[..., inverse, :]) ** 2).sum((-2, -1)) / len(labels)
    between = ((means - means.mean(-2, keepdims=True)) ** 2).sum((-2, -1)) / means.shape[-2]
    return within / between


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (LABELS, [0, 1, 2]),
        (LABELS * 10 - 7, [-7, 3, 13]),
        (LABELS.astype(float), [0, 1, 2]),
        (np.array(["a", "b", "c"])[LABELS], ["a", "b", "c"]),
        (np.array(["x", "ab", "c"], dtype=object)[LABELS].tolist(), ["ab", "c", "x"]),
        (np.eye(3, dtype=int)[LABELS], [0, 1, 2]),
        (np.eye(5, dtype=bool)[LABELS + 1], [1, 2, 3]),
        (torch.tensor(LABELS), [0, 1, 2]),
        (LABELS == 1, [False, True]),
    ],
    ids=[
        "integers",
        "gaps",
        "whole floats",
        "texts",
        "objects",
        "one-hot",
        "absent",
        "tensor",
        "bool",
    ],
)
def test_labels_of_any_kind(labels, classes):
    paths = lesde.from_arrays(FRAMES, labels, TIMES)
    assert paths.attrs["classes"] == classes
    plain = np.asarray(labels)
    plain = plain if plain.ndim == 1 else plain.argmax(1)
    np.testing.assert_array_equal(np.asarray(classes)[paths.label], plain)
    found = lesde.neural_collapse(paths).nc1_trace
    np.testing.assert_allclose(found.isel(replicate=0), nc1(FRAMES, plain), rtol=1e-12)


@pytest.mark.parametrize(
    ("lead", "arguments", "dims"),
    [
        ((), {}, ("replicate", "time")),
        ((4,), {"times": TIMES}, ("replicate", "time")),
        ((3, 4), {"times": TIMES}, ("replicate", "time")),
        ((3,), {"replicate": ["a", "b", "c"]}, ("replicate", "time")),
        ((3,), {"replicate": ["a", "b", "c"], "times": 1.5}, ("replicate", "time")),
        ((2, 4), {"times": TIMES, "learning_rate": [0.1, 0.2]}, ("learning_rate", "replicate", "time")),
        ((2, 3, 4), {"times": TIMES, "learning_rate": [0.1, 0.2]}, ("learning_rate", "replicate", "time")),
        ((4,), {"times": TIMES, "learning_rate": 0.1}, ("replicate", "time")),
    ],
    ids=str,
)  # fmt: skip
def test_axes(lead, arguments, dims):
    features = RNG.normal(size=(*lead, 9, 2)).astype(np.float32)
    paths = lesde.from_arrays(features, LABELS, **arguments)
    assert paths.features.dims == (*dims, "sample", "feature")
    assert paths.features.dtype == np.float32
    np.testing.assert_array_equal(np.ravel(paths.features), np.ravel(features))
    found = lesde.neural_collapse(paths).nc1_trace
    expected = nc1(features.astype(float), LABELS)
    np.testing.assert_allclose(np.ravel(found), np.ravel(expected), rtol=1e-5)
    if "times" in arguments:
        np.testing.assert_array_equal(np.ravel(paths.time), np.ravel(arguments["times"]))
    if "learning_rate" in arguments:
        np.testing.assert_array_equal(paths.learning_rate, arguments["learning_rate"])


@pytest.mark.filterwarnings("ignore:no (tail|log_slope)_index", "ignore:paths has 6 replicate")
def test_simulated_paths_come_back_the_same_from_their_arrays():
    kernel = lesde.TwoLevel(2, -1)
    model = lesde.LESDE(kernel, n_classes=3, n_features=3, n_per_class=8, noise=0.3)
    means = np.eye(3) + 0.1
    paths = lesde.simulate(model, TIMES, initial=means, replicates=6, learning_rate=0.05)
    order = np.random.default_rng(0).permutation(24)
    own = lesde.from_arrays(
        paths.features.values[:, :, order],
        np.array(["u", "v", "w"])[paths.label[order]],
        paths.time,
    )
    for analyse in (
        lesde.neural_collapse,
        lesde.separation_probability,
        lesde.statistics,
        lambda given: lesde.convergence(lesde.neural_collapse(given, "nc1_trace")),
        lambda given: lesde.fit_elasticity(given, transform="identity", scheme="exponential"),
    ):
        expected, found = analyse(paths.drop_vars(["iteration", "learning_rate"])), analyse(own)
        for name in expected.data_vars:
            if expected[name].dtype.kind == "f":
                np.testing.assert_allclose(
                    found[name], expected[name], rtol=1e-4, atol=1e-6, err_msg=name
                )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
def test_tensors_keep_their_precision(dtype):
    given = torch.tensor(FRAMES, dtype=dtype, requires_grad=True)
    paths = lesde.from_arrays(given, LABELS, TIMES)
    kept = {torch.float16: "float16", torch.float64: "float64"}.get(dtype, "float32")
    assert paths.features.dtype == kept
    np.testing.assert_array_equal(paths.features[0], given.detach().double().numpy())


def test_classifier_goes_into_nc3_and_nc4():
    weights = RNG.normal(size=(3, 2))
    fixed = lesde.from_arrays(FRAMES, LABELS, TIMES, weights=weights, bias=[0.1, 0, -0.1])
    moving = lesde.from_arrays(
        torch.tensor(FRAMES, requires_grad=True),
        LABELS,
        TIMES,
        weights=torch.tensor(np.stack([weights] * 4), requires_grad=True),
        bias=np.tile([0.1, 0, -0.1], (4, 1)),
    )
    first, second = lesde.neural_collapse(fixed), lesde.neural_collapse(moving)
    np.testing.assert_allclose(first.nc3, second.nc3)
    logits = FRAMES @ weights.T + [0.1, 0, -0.1]
    means = np.stack([FRAMES[:, k == LABELS].mean(1) for k in range(3)], 1)
    nearest = ((FRAMES[:, :, None] - means[:, None]) ** 2).sum(-1).argmin(-1)
    agree = (logits.argmax(-1) == nearest).mean(-1)
    np.testing.assert_allclose(second.nc4.isel(replicate=0), agree)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"times": None}, ValueError, r"features of shape .* have 1 axes .* no argument names them"),
        ({"times": TIMES[:3]}, ValueError, r"times must name the 4 entries"),
        ({"times": [0, 1, 1, 2]}, ValueError, "times must be strictly increasing"),
        ({"learning_rate": [0.1, 0.2], "replicate": [0, 1]}, ValueError, "features of shape"),
        ({"learning_rate": -0.1}, ValueError, "learning_rate must hold distinct positive numbers"),
        ({"replicate": [1, 1], "times": None}, ValueError, "replicate must be a sequence of distinct names"),
        ({"labels": LABELS[:5]}, ValueError, r"labels must hold the class of each of the 9 samples"),
        ({"labels": LABELS + 0.5}, ValueError, "labels must hold .*; got shape"),
        ({"labels": [None, 1, "a"] * 3}, TypeError, "labels must hold .* do not sort"),
        ({"labels": np.ones((9, 2))}, ValueError, "labels must hold .* not one-hot"),
        ({"features": FRAMES * np.nan}, ValueError, "features must be finite"),
        ({"features": FRAMES + 0j}, TypeError, "features must be an array of real numbers"),
        ({"features": [[1, 2], [3]]}, TypeError, "features must be an array of real numbers"),
        ({"features": np.ma.masked_less(FRAMES, 0)}, ValueError, "features must not be masked"),
        ({"labels": np.ma.masked_equal(LABELS, 0)}, ValueError, "labels must not be masked"),
        ({"times": np.ma.masked_equal(TIMES, 1)}, ValueError, "times must not be masked"),
        ({"features": np.ones(9)}, ValueError, "features must have shape"),
        ({"weights": np.ones((2, 2))}, ValueError, r"weights must have shape \(3, 2\)"),
        ({"bias": np.ones(3)}, ValueError, "bias belongs to a classifier"),
    ],
)  # fmt: skip
def test_errors_name_argument_and_remedy(changed, error, words):
    arguments = {"features": FRAMES, "labels": LABELS, "times": TIMES} | changed
    with pytest.raises(error, match=words):
        lesde.from_arrays(**arguments)


@pytest.mark.parametrize(
    "names", [[[1, 2], [3]], [{}, {}], [1, 1], torch.zeros(2, requires_grad=True)]
)
def test_names_of_replicates_that_are_not_distinct_are_refused_by_name(names):
    with pytest.raises((TypeError, ValueError), match="replicate must be"):
        lesde.from_arrays(np.zeros((2, 4, 2)), [0, 0, 1, 1], replicate=names)
