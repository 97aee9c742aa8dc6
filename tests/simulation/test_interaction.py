"""The tiled interaction against double loops, its invariances, and the limit of a class kernel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import lesde
from lesde import LESDE, FeatureKernel, TwoLevel
from lesde.processes.pairs import Interaction, make_layout

T = 0.7
FORMULAS = [
    "s*2*exp(-r2/8) - (1-s)*exp(-r2/2)/(1+t)",
    "c*exp(-r2*t) + g/(1+r2)**1.3 + sinh(c)",
    "s*exp(-r2) - (1-s)*0.5",
    "s*0.5 - (1-s)/((1+r2)*(1+t))",
    "g",
    "1 if r2 < 2 else c",
    "2*s - (1-s)*t",
]
MATRICES = np.random.default_rng(5).normal(size=(3, 3, 3))
SYSTEMS = {
    "small classes": ([5, 9, 3], "identity", 2),
    "unbalanced": ([60, 49, 20], "identity", 3),
    "one feature": ([7, 50], "identity", 1),
    "logits": ([50, 3, 4, 20], "logits", 4),
    "matrices": ([7, 60, 5], MATRICES, 3),
    "shared matrix": ([7, 60], MATRICES[0], 3),
}


def make_model(formula: str, name: str) -> LESDE:
    counts, transform, p = SYSTEMS[name]
    return LESDE(FeatureKernel(formula), len(counts), p, counts, transform)


def kicks_of_all_draws(model: LESDE, X: np.ndarray, t: float) -> np.ndarray:
    """κ_ij H_j X_j for all i and j by a double loop, (i, j, feature), float64."""
    labels, H, formula = model.labels, model.transform_array(), model.kernel.formula
    norm = np.linalg.norm(X, axis=1)
    r2, g, c = np.zeros((3, len(X), len(X)))
    for i, j in itertools.product(range(len(X)), repeat=2):
        r2[i, j], g[i, j] = ((X[i] - X[j]) ** 2).sum(), X[i] @ X[j]
        if norm[i] * norm[j] > 0:
            c[i, j] = min(1.0, max(-1.0, g[i, j] / (norm[i] * norm[j])))
    kappa = formula(r2, g, c, labels[:, None] == labels, t)
    return kappa[:, :, None] * np.stack([H[k] @ x for k, x in zip(labels, X, strict=True)])


def samples_of(model: LESDE, replicates: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(replicates, model.n_samples, model.n_features))
    X[0, 1] = 0.0  # a sample at the origin: its cosines are 0
    X[0, 3] = X[0, 4]  # two samples in one place
    return X


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("formula", FORMULAS)
def test_against_a_double_loop(formula, name):
    """Drift, kicks of every draw and sampling noise, in float64 to rounding."""
    model = make_model(formula, name)
    X = samples_of(model, 2)
    N, xi = model.n_samples, np.random.default_rng(2).normal(size=(2, model.n_samples))
    work = Interaction(lesde.derive(model).coefficients(), torch.float64)
    drift = work.drift(torch.tensor(X), T)
    sampling = work.sampling(torch.tensor(X), T, drift, torch.tensor(xi))
    kicks = torch.stack([work.kick(torch.tensor(X), torch.tensor([j, j]), T) for j in range(N)], 2)
    for r in range(2):
        expected = kicks_of_all_draws(model, X[r], T)
        b = expected.mean(1)
        np.testing.assert_allclose(kicks[r], expected, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(drift[r], b, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(kicks[r].mean(1), drift[r], rtol=1e-11, atol=1e-13)
        noise = ((expected - b[:, None]) * xi[r][None, :, None]).sum(1) / np.sqrt(N)
        np.testing.assert_allclose(sampling[r], noise, rtol=1e-10, atol=1e-12)
    both = work.drift_and_sampling(torch.tensor(X), T, torch.tensor(xi))
    torch.testing.assert_close(both[0], drift, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(both[1], sampling, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("formula", FORMULAS[:2])
@pytest.mark.parametrize("name", ["unbalanced", "matrices"])
def test_single_precision(formula, name):
    """float32 agrees with float64 to some 20 units of rounding of the largest drift."""
    model = make_model(formula, name)
    X = torch.tensor(samples_of(model, 3), dtype=torch.float32)
    exact = Interaction(lesde.derive(model).coefficients(), torch.float64).drift(X.double(), T)
    single = Interaction(lesde.derive(model).coefficients(), torch.float32).drift(X, T)
    assert single.dtype == torch.float32
    assert float((single - exact).abs().max()) < 20 * 1.2e-7 * float(exact.abs().max())


def test_sampling_noise_has_the_covariance_of_the_kicks():
    """Exactly: the sum over unit vectors ξ = e_j of outer products is C_ij of all pairs of samples."""
    model = make_model(FORMULAS[0], "small classes")
    X = samples_of(model, 1)
    N = model.n_samples
    work = Interaction(lesde.derive(model).coefficients(), torch.float64)
    copies = torch.tensor(X).expand(N, -1, -1).contiguous()
    units = torch.eye(N, dtype=torch.float64)
    columns = work.sampling(copies, T, work.drift(copies, T), units).reshape(N, -1).numpy()
    kicks = kicks_of_all_draws(model, X[0], T).swapaxes(0, 1).reshape(N, -1)
    np.testing.assert_allclose(
        columns.T @ columns, np.cov(kicks.T, bias=True), rtol=1e-10, atol=1e-13
    )


@pytest.mark.parametrize("transform", ["identity", "logits"])
@pytest.mark.parametrize("tiled", [False, True])
def test_constant_formula_is_the_class_kernel(transform, tiled):
    """To rounding, by sums over classes and, with a formula whose features cancel out, by tiles."""
    counts = [60, 11, 300, 8]
    formula = "2*s/(1+t) - 0.5*(1-s)"
    twin = LESDE(TwoLevel("2/(1+t)", -0.5), 4, 4, counts, transform)
    if tiled:  # 1 for every pair in float64, but nobody simplifies that
        formula = f"({formula})*tanh(1e3+r2)"
    model = twin.replace(kernel=FeatureKernel(formula))
    assert model.kernel.formula.is_class_only is not tiled
    X = samples_of(model, 2)
    drift = Interaction(lesde.derive(model).coefficients(), torch.float64).drift(torch.tensor(X), T)
    ends = np.cumsum([0, *counts])
    means = np.stack([X[:, a:b].mean(1) for a, b in itertools.pairwise(ends)], axis=1)
    weights = lesde.derive(twin).coefficients().weights(np.array([T]))[0]
    expected = (weights @ model.transform(means))[:, model.labels]
    np.testing.assert_allclose(drift, expected, rtol=1e-12, atol=1e-14)


def test_constant_formula_costs_no_tiles():
    model = LESDE(FeatureKernel("2*s - (1-s)*t"), 3, 2, 100)
    work = Interaction(lesde.derive(model).coefficients())
    assert work._tiles is not None
    assert work._tiles.tasks == []
    only_same = LESDE(FeatureKernel("s*exp(-r2) - 1 + s"), 3, 2, 100)
    kinds = [part.kind for task in Interaction(lesde.derive(only_same).coefficients())._tiles.tasks
             for part in task.parts]  # fmt: skip
    assert kinds == ["same"] * 3


BIT_SYSTEMS = {
    "several blocks": ([60, 270], "identity", 3),
    "one feature": ([60, 49], "identity", 1),
    "logits": ([50, 3, 4, 20, 7], "logits", 5),
    "matrices": ([7, 60, 5], np.random.default_rng(6).normal(size=(3, 7, 7)), 7),
    "many small classes": ([3] * 70, "identity", 33),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BIT_SYSTEMS)
def test_bits_do_not_depend_on_grouping_memory_or_threads(name, dtype):
    counts, transform, p = BIT_SYSTEMS[name]
    formula = "s*exp(-r2/8) + c*exp(-r2*t) + g/(1+r2)**1.3 + sinh(c) + (1-s)*cosh(c)**2.5"
    model = LESDE(FeatureKernel(formula), len(counts), p, counts, transform)
    coefficients = lesde.derive(model).coefficients()
    rng = np.random.default_rng(7)
    R, N = 5, model.n_samples
    X = torch.tensor(rng.normal(size=(R, N, p)), dtype=dtype)
    xi = torch.tensor(rng.normal(size=(R, N)), dtype=dtype)
    J = torch.tensor(rng.integers(N, size=R))

    def everything(work: Interaction, rows: slice) -> list[torch.Tensor]:
        drift = work.drift(X[rows], T)
        sampling = work.sampling(X[rows], T, drift, xi[rows])
        both = work.drift_and_sampling(X[rows], T, xi[rows])
        return [drift, sampling, *both, work.kick(X[rows], J[rows], T)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = everything(Interaction(coefficients, dtype), slice(0, R))
        for threads, tile_bytes in ((1, None), (1, 2**23), (2, None), (2, 2**26)):
            torch.set_num_threads(threads)
            work = Interaction(coefficients, dtype, tile_bytes=tile_bytes)
            for rows in (slice(0, R), slice(1, 4), slice(4, 5)):
                for all_at_once, part in zip(whole, everything(work, rows), strict=True):
                    assert torch.equal(all_at_once[rows], part)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("formula", FORMULAS)
def test_rotation_turns_the_drift(formula):
    """r2, g and c do not change under a rotation of all features, so the I-model's drift turns along."""
    model = make_model(formula, "unbalanced")
    Q = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]
    X = samples_of(model, 1)
    work = Interaction(lesde.derive(model).coefficients(), torch.float64)
    turned = work.drift(torch.tensor(X @ Q.T), T).numpy()
    plain = work.drift(torch.tensor(X), T).numpy()
    np.testing.assert_allclose(turned, plain @ Q.T, rtol=1e-9, atol=1e-12)


def test_distances_within_a_collapsed_class_far_away_keep_their_digits():
    """Spread 0.05 about class means 1,000 apart, in float32, against float64 on the same numbers.

    About the origin or the mean of all, r2 of some 0.01 would drown in rounding errors of 0.03.
    """
    counts, p = [60, 70], 3
    model = LESDE(FeatureKernel("s*exp(-r2*1000)*1000"), 2, p, counts)
    centres = np.array([[500.0, 0, 0], [-500.0, 0, 0]])[model.labels]
    X = centres + 0.05 * np.random.default_rng(3).normal(size=centres.shape)
    X = torch.tensor(X[None], dtype=torch.float32)
    single = Interaction(lesde.derive(model).coefficients(), torch.float32).drift(X, T)
    exact = kicks_of_all_draws(model, X[0].double().numpy(), T).mean(1)
    np.testing.assert_allclose(single[0], exact, rtol=1e-3, atol=1e-3 * np.abs(exact).max())


def test_own_distance_is_exactly_zero():
    """sqrt would turn a rounding error of 1e-7 into 3e-4."""
    model = LESDE(FeatureKernel("s*Heaviside(1e-12 - sqrt(r2))"), 2, 2, [60, 5])
    X = torch.tensor(samples_of(model, 1, seed=9)[:, :, :] * 10, dtype=torch.float32)
    X[0, 3] += 1.0
    drift = Interaction(lesde.derive(model).coefficients()).drift(X, T)
    torch.testing.assert_close(drift, X / model.n_samples, rtol=1e-6, atol=0)


def test_large_features_have_finite_cosines():
    model = LESDE(FeatureKernel("c"), 2, 2, [60, 5])
    X = torch.tensor(samples_of(model, 1), dtype=torch.float32)
    plain = Interaction(lesde.derive(model).coefficients()).drift(X, T)
    large = Interaction(lesde.derive(model).coefficients()).drift(X * 2.0**80, T)
    torch.testing.assert_close(large, plain * 2.0**80, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "counts", [[1], [1, 1, 1], [100], [47, 48], [10] * 30, [600, 5, 5, 300, 7]]
)
def test_layout_holds_every_pair_once(counts):
    layout = make_layout(np.array(counts), 256)
    N = sum(counts)
    labels = np.repeat(np.arange(len(counts)), counts)
    seen = np.zeros((N, N), dtype=int)
    for tile in layout.tiles():
        a, b = tile.row, tile.column
        assert max(a.length, b.length) <= 256
        rows, columns = (
            np.arange(a.first, a.first + a.length),
            np.arange(b.first, b.first + b.length),
        )
        same = labels[rows][:, None] == labels[columns]
        expected = {"same": same.all(), "different": not same.any(), "mixed": a is b}
        assert expected[tile.kind]
        seen[np.ix_(rows, columns)] += 1
        if a is not b:
            seen[np.ix_(columns, rows)] += 1
    assert (seen == 1).all()
    np.testing.assert_array_equal(layout.sample[~layout.is_padding], np.arange(N))
    assert all(block.width % 8 == 0 for block in layout.blocks)
    assert len(layout.sample) % 16 == 0


def test_memory_of_the_tiles_is_bounded():
    """A small block, so that there are many tiles, and the arena is what was asked for."""
    model = LESDE(FeatureKernel("tanh(g)*exp(-r2) + c**3"), 2, 2, [600, 500])
    coefficients = lesde.derive(model).coefficients()
    with pytest.raises(
        ValueError, match=r"tile_bytes must be at least \d+, which the largest tile"
    ):
        Interaction(coefficients, tile_bytes=1000)
    assert Interaction(coefficients).tile_bytes >= 2**21
    work = Interaction(coefficients, tile_bytes=2**22)
    work.drift(torch.zeros(9, 1100, 2), T)
    assert work._tiles is not None
    assert work._tiles._arena.nbytes <= 2**22
    arrays = 4 * 8 * (600 + 500)  # eight planes of four bytes a feature, padded to four
    assert 4 * arrays < work.bytes_per_replicate < 20 * arrays


def test_errors():
    free = LESDE(FeatureKernel("a*exp(-r2)", {"a": None}), 2, 2)
    with pytest.raises(ValueError, match=r"no value for a.*parameters=\{"):
        Interaction(lesde.derive(free).coefficients())
    pole = LESDE(FeatureKernel("exp(-r2)/t + s*exp(-r2/(t-1))"), 2, 2, 60)
    work = Interaction(lesde.derive(pole).coefficients())
    assert not work.is_constant
    for time in (0.0, 1.0):
        with pytest.raises(ValueError, match=rf"strength.* not finite.* at t = {time:g}"):
            work.drift(torch.zeros(1, 120, 2), time)


def test_non_finite_features_are_passed_on():
    """No check inside a step: what is not finite arrives in the result, where the caller sees it."""
    model = LESDE(FeatureKernel(FORMULAS[0]), 2, 2, 60)
    X = torch.zeros(2, 120, 2)
    X[0, 5] = torch.inf
    drift = Interaction(lesde.derive(model).coefficients()).drift(X, T)
    assert not bool(torch.isfinite(drift[0]).all())
    assert bool(torch.isfinite(drift[1]).all())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("formula", FORMULAS)
def test_on_a_gpu(formula):
    for name in SYSTEMS:
        check_on_a_gpu(make_model(formula, name))


def check_on_a_gpu(model: LESDE) -> None:
    coefficients, X = lesde.derive(model).coefficients(), torch.tensor(samples_of(model, 3))
    cpu = Interaction(coefficients, torch.float64)
    gpu = Interaction(coefficients, torch.float64, "cuda")
    J, xi = torch.tensor([0, 5, 9]), torch.tensor(samples_of(model, 3)[:, :, 0])
    pairs = [(cpu.drift(X, T), gpu.drift(X.cuda(), T))]
    pairs.append((cpu.kick(X, J, T), gpu.kick(X.cuda(), J.cuda(), T)))
    noise = gpu.sampling(X.cuda(), T, pairs[0][1], xi.cuda())
    pairs.append((cpu.sampling(X, T, pairs[0][0], xi), noise))
    for a, b in pairs:
        torch.testing.assert_close(a, b.cpu(), rtol=1e-10, atol=1e-12)
