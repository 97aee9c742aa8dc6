"""Kernels: the tables of entries that they hand out."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp

import lesde
from lesde import ClassMatrix, Hierarchical, LabelNoise, TwoLevel
from lesde.model.formula import TIME
from lesde.model.kernels import Kernel

TIMES = np.array([0.0, 0.7, 3.0])


def test_two_level():
    table = TwoLevel("2/(1+t)", -0.5).entries(4)
    expected = np.where(np.eye(4, dtype=bool), (2 / (1 + TIMES))[:, None, None], -0.5)
    np.testing.assert_allclose(table(TIMES), expected, rtol=1e-15)
    assert len(table.values) == 2


def test_class_matrix_takes_every_kind_of_entry():
    kernel = ClassMatrix([[1, "a*t"], [TIME**2, np.cos]], parameters={"a": 3})
    expected = [[np.ones(3), 3 * TIMES], [TIMES**2, np.cos(TIMES)]]
    np.testing.assert_allclose(kernel.entries(2)(TIMES), np.moveaxis(expected, -1, 0), rtol=1e-15)
    array = np.arange(9.0).reshape(3, 3)
    for given in (array, list(array), array.tolist(), sp.Matrix(array.astype(int).tolist())):
        np.testing.assert_array_equal(ClassMatrix(given).entries(3)(TIMES[:1])[0], array)


def test_hierarchical():
    kernel = Hierarchical([0, 1, 0], alpha=3, beta="t", gamma=-1)
    values = kernel.entries(3)(np.array([5.0]))[0]
    np.testing.assert_array_equal(values, [[3, -1, 5], [-1, 3, -1], [5, -1, 3]])


@pytest.mark.parametrize("p", [0.0, 0.25, 0.9, 1.0])
@pytest.mark.parametrize("K", [2, 5])
def test_label_noise_is_the_matrix_product(p, K):
    rng = np.random.default_rng(K)
    E = rng.normal(size=(K, K))
    Q = (1 - p) * np.eye(K) + p / (K - 1) * (1 - np.eye(K))
    np.testing.assert_allclose(
        LabelNoise(ClassMatrix(E), p).entries(K)(np.array([0.0]))[0],
        E @ Q.T,
        rtol=1e-13,
        atol=1e-14,
    )
    two = LabelNoise(TwoLevel(2, "-1/(1+t)"), p).entries(K)
    clean = TwoLevel(2, "-1/(1+t)").entries(K)
    np.testing.assert_allclose(two(TIMES), clean(TIMES) @ Q.T, atol=1e-14)
    assert len(two.values) <= 2


def test_label_noise_by_drawing_labels():
    """Null: a step on a sample of true class l acts as one on class m with probability Q_lm.

    200,000 draws; the mean strength is compared at five standard errors.
    """
    K, p, n = 4, 0.3, 200_000
    rng = np.random.default_rng(7)
    E = rng.normal(size=(K, K))
    noisy = LabelNoise(ClassMatrix(E), p).entries(K)(np.array([0.0]))[0]
    for l in range(K):
        wrong = rng.random(n) < p
        labels = np.where(wrong, (l + rng.integers(1, K, n)) % K, l)
        strengths = E[:, labels]
        error = strengths.std(1) / np.sqrt(n)
        assert (np.abs(strengths.mean(1) - noisy[:, l]) < 5 * error).all()


def test_label_noise_transition_is_exact_in_floating_point():
    table = LabelNoise(TwoLevel(), 2 / 3).entries(3)
    assert sp.expand(table[0, 0] - table[0, 1]) == 0
    K, p = 5, sp.Symbol("p")
    table = LabelNoise(TwoLevel(), p).entries(K)
    alpha, beta = TwoLevel().levels
    difference = table[0, 0] - table[0, 1] - (alpha - beta) * (1 - p * K / (sp.Integer(K) - 1))
    assert sp.expand(difference) == 0


def test_decorated_function():
    @lesde.kernel
    def symbolic(k, l, t):
        """Words."""
        return 2 / (1 + t) if k == l else -1 / (1 + abs(k - l))

    @lesde.kernel
    def numerical(k, l, t):
        return 2 / (1 + np.exp(t)) if k == l else 0.5 * np.where(t > 1, 1.0, 2.0)

    assert isinstance(symbolic, Kernel)
    assert symbolic.__doc__ == "Words."
    assert symbolic.entries(3)[0, 2] == sp.Rational(-1, 3)
    assert symbolic.entries(3)[1, 1] == 2 / (1 + TIME)
    np.testing.assert_allclose(numerical.entries(2)(TIMES)[:, 0, 0], 2 / (1 + np.exp(TIMES)))
    np.testing.assert_array_equal(numerical.entries(2)(TIMES)[:, 0, 1], [1, 1, 0.5])


@pytest.mark.parametrize("K", [1, 2, 7, 100])
def test_structure_is_kept(K):
    """However many classes, as many distinct values as the kernel has levels."""
    assert len(TwoLevel("1/(1+t)", -1).entries(K).values) <= 2
    groups = np.arange(K) % min(K, 3)
    assert len(Hierarchical(groups, "1/(1+t)", -1, 0.5).entries(K).values) <= 3
    assert len(LabelNoise(TwoLevel("1/(1+t)", -1), 0.1).entries(K).values) <= 2


def test_equal_entries_are_merged():
    assert len(ClassMatrix([[1, "1.0"], [1.0, "2/2"]]).entries(2).values) == 1


def test_represented_as_text():
    assert repr(TwoLevel("c/(1+t)", -0.5, {"c": 2})) == "TwoLevel(alpha=2/(t + 1), beta=-1/2)"
    described = LabelNoise(Hierarchical([0, 0, 1], 1, 2, 3), 0.25).describe()
    assert described["kind"] == "LabelNoise"
    assert described["p"] == "1/4"
    assert "groups=[0, 0, 1]" in described["kernel"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TwoLevel("2*"), ValueError, "alpha = .* syntax error"),
        (lambda: TwoLevel(1, "c*t"), ValueError, "beta = .* unknown symbol 'c'"),
        (lambda: TwoLevel(1, np.nan), ValueError, "beta must be a finite number.*got nan"),
        (lambda: ClassMatrix([[1, 2], [3]]), TypeError, "matrix must be a K×K table"),
        (lambda: ClassMatrix(np.ones(3)), TypeError, "matrix must be a K×K table"),
        (lambda: ClassMatrix(5), TypeError, "matrix must be a K×K table of values; got 5"),
        (lambda: ClassMatrix([]), TypeError, "matrix must be a K×K table"),
        (lambda: ClassMatrix("ab"), TypeError, "matrix must be a K×K table"),
        (
            lambda: ClassMatrix([[1, np.inf], [0, 1]]),
            ValueError,
            r"matrix\[0\]\[1\] must be a finite number",
        ),
        (
            lambda: ClassMatrix([[1, 0], ["x", 1]]),
            ValueError,
            r"matrix\[1\]\[0\] = 'x'.*unknown symbol",
        ),
        (lambda: ClassMatrix(np.eye(2)).entries(3), ValueError, "n_classes must be 2.*got 3"),
        (lambda: Hierarchical([0, 2], 1, 2, 3), ValueError, "groups must be the integers 0 to K-1"),
        (lambda: Hierarchical([0.5, 1], 1, 2, 3), TypeError, "groups must be"),
        (lambda: Hierarchical([0, 1], 1, 2, 3).entries(3), ValueError, "n_classes must be 2"),
        (lambda: LabelNoise(TwoLevel(1, 2), 1.5), ValueError, r"p must be .*\[0, 1\]; got 1.5"),
        (lambda: LabelNoise(TwoLevel(1, 2), sp.Rational(3, 2)), ValueError, "p must be .*got 1.5"),
        (
            lambda: LabelNoise(TwoLevel(1, 2), "0.1"),
            TypeError,
            "p must be a real number; got '0.1'",
        ),
        (lambda: LabelNoise(0.5, 0.1), TypeError, "kernel must be an elasticity kernel; got 0.5"),
        (lambda: lesde.kernel(3), TypeError, r"a function \(k, l, t\); got 3"),
        (lambda: lesde.kernel(lambda k, l, t: "t^").entries(2), ValueError, "syntax error"),
    ],
)
def test_bad_kernels(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (TwoLevel("1/(t-0.7)", 0), r"alpha = .* is not finite at t = 0\.7"),
        (ClassMatrix([[1, "sqrt(-t)"], [0, 1]]), r"matrix\[0\]\[1\] = .*at t = 0\.7"),
        (lesde.kernel(lambda k, l, t: 1 / (t - 3)), r"kernel\(0, 0, t\) = .* not finite at t = 3"),
        (TwoLevel(1, None), r"beta = beta\(t\) has no value for beta"),
    ],
)
def test_bad_values_in_time_name_the_entry(kernel, message):
    with pytest.raises(ValueError, match=message):
        kernel.entries(2)(TIMES)
    coefficients = lesde.derive(lesde.LESDE(kernel, 2, 1)).coefficients()
    for evaluate in (coefficients.weights, coefficients.kicks):
        with pytest.raises(ValueError, match=message):
            evaluate(TIMES)


def test_a_lambda_that_needs_numpy_is_a_kernel():
    made = lesde.kernel(lambda k, l, t: np.exp(-t) if k == l else 0 * t)
    model = lesde.LESDE(made, 2, 2)
    values = lesde.derive(model).coefficients().kicks(np.array([0.0, 1.0]))
    np.testing.assert_allclose(values[1], np.exp(-1) * np.eye(2))
