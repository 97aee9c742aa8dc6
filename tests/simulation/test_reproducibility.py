"""Same seed, same result: bit for bit, whatever the replicates asked for, chunking and threads."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import lesde
from lesde import simulate, simulation
from lesde.processes import integration
from lesde.processes.process import BlockNoise
from tests.simulation.systems import MEANS, make_system

TIMES = [0, 0.2, 0.5, 1.1]
RUNS = {
    "exact": {"engine": "exact"},
    "euler": {"engine": lesde.TorchSDE(dt=0.05)},
    "srk": {"engine": lesde.TorchSDE(method="srk", dt=0.05)},
    "sgd": {"engine": "sgd", "learning_rate": 0.02},
    "sampling": {"engine": lesde.TorchSDE(noise="sampling"), "learning_rate": 0.02},
    "modified": {"engine": lesde.TorchSDE(noise="modified"), "learning_rate": 0.02},
}
CASES = [
    ("identity", "balanced", "constant", "scalar"),
    ("logits", "unbalanced", "varying", "full"),
    ("matrix", "unbalanced", "constant", "per class"),
    ("shared", "balanced", "varying", "full, shared"),
]
every = pytest.mark.parametrize(
    ("run", "case"),
    list(itertools.product(RUNS, CASES)),
    ids=lambda x: x if isinstance(x, str) else x[0],
)


def paths_of(case, run, replicates=64, **changes):
    arguments = {"seed": 11, **RUNS[run], **changes}
    initial = arguments.pop("initial", MEANS)
    return simulate(make_system(*case).model, TIMES, initial, replicates, **arguments)


def features(case, run, replicates=64, **changes):
    return paths_of(case, run, replicates, **changes).features.values


def statistics(case, run, replicates=64, **changes):
    paths = paths_of(case, run, replicates, keep="statistics", **changes)
    names = ("mean", "within", "reach", "reach_expected")
    shape = (replicates, len(TIMES), -1)
    kept = [paths[name].values.reshape(shape) for name in names if name in paths]
    return np.nan_to_num(np.concatenate(kept, axis=-1), nan=-1.0)


@every
def test_more_replicates_extend_the_same_stream(run, case):
    many = features(case, run)
    assert np.array_equal(many, features(case, run))
    assert np.array_equal(many[:32], features(case, run, 32))
    assert np.array_equal(many[:40], features(case, run, 40))
    assert np.array_equal(many[32:], features(case, run, 32, first_replicate=32))
    assert not np.array_equal(many, features(case, run, seed=12))
    assert not np.array_equal(many[:32], many[32:])


@every
def test_statistics_extend_the_same_stream(run, case):
    many = statistics(case, run)
    assert np.array_equal(many[:40], statistics(case, run, 40))
    assert np.array_equal(many[32:], statistics(case, run, 32, first_replicate=32))
    assert not np.array_equal(many[:32], many[32:])


@every
@pytest.mark.parametrize("keep", [features, statistics], ids=lambda f: f.__name__)
def test_chunking_does_not_matter(run, case, keep, monkeypatch):
    whole = keep(case, run, 96)
    monkeypatch.setattr(simulation, "MOST_BLOCKS", 1)
    # On the CPU a generator's numbers do not depend on how many are asked for at once.
    monkeypatch.setattr(integration, "PREFETCH", 5)
    assert np.array_equal(whole, keep(case, run, 96))


@pytest.mark.parametrize("run", RUNS)
def test_a_memory_limit_splits_the_work_and_changes_nothing(run, monkeypatch):
    case = CASES[1]
    sizes = []
    original = simulation._groups

    def counted(*arguments):
        made = original(*arguments)
        sizes.append(len(made[0]))
        return made

    monkeypatch.setattr(simulation, "_groups", counted)
    whole = features(case, run, 128)
    # As little as the message says is needed.
    with pytest.raises(ValueError, match=r"memory_limit leaves .* raise memory_limit") as error:
        features(case, run, 128, memory_limit=whole.nbytes + 1000)
    needed = float(str(error.value).split("replicates needs ")[1].split(" MB")[0]) * 1e6
    tight = features(case, run, 128, memory_limit=whole.nbytes + 1.01 * needed)
    assert sizes[-1] == 4
    assert np.array_equal(whole, tight)
    if run in ("exact", "euler", "srk", "sgd"):
        assert sizes[0] < 4


@pytest.mark.parametrize("run", RUNS)
def test_threads_do_not_matter(run):
    # Large enough for torch to split its loops, and for blocks to run in threads.
    system = make_system("matrix", "unbalanced", "varying", "per class")
    model = system.model.replace(n_per_class=[300, 400, 500])
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            paths = simulate(model, [0, 0.1, 0.2], MEANS, 64, seed=1, **RUNS[run])
            results.append(paths.features.values)
            assert torch.get_num_threads() == threads  # the setting is put back
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(*results)


@pytest.mark.parametrize("run", ["exact", "euler", "srk"])
def test_saving_fewer_late_times_keeps_the_early_ones(run):
    system = make_system(*CASES[1])
    long = simulate(system.model, TIMES, MEANS, 32, **RUNS[run]).features.values
    short = simulate(system.model, TIMES[:3], MEANS, 32, **RUNS[run]).features.values
    assert np.array_equal(long[:, :3], short)


@pytest.mark.parametrize("run", RUNS)
def test_learning_rates_have_noise_of_their_own(run):
    settings = {k: v for k, v in RUNS[run].items() if k != "learning_rate"}
    model = make_system(*CASES[1]).model
    both = simulate(model, TIMES, MEANS, 32, learning_rate=[0.02, 0.1], **settings).features
    alone = simulate(model, TIMES, MEANS, 32, learning_rate=0.02, **settings).features
    assert both.dims[0] == "learning_rate"
    assert alone.dims[0] == "replicate"
    assert np.array_equal(both.values[0], alone.values)
    a, b = (both.values[i, :, -1, 0, 0].astype(float) for i in (0, 1))
    assert not np.allclose(a, b)


NEARLY = [0.02, 0.02 * (1 + 1e-12)]
"""Learning rates that are as good as equal: with the same noise their paths would be as well."""


@pytest.mark.parametrize("keep", ["features", "statistics"])
@pytest.mark.parametrize("run", RUNS)
def test_equal_learning_rates_have_independent_noise(run, keep):
    """Null: correlation 0 over 64 replicates, whose standard error is 1/8; 5 of them."""
    settings = {k: v for k, v in RUNS[run].items() if k != "learning_rate"}
    model = make_system(*CASES[1]).model
    paths = simulate(model, TIMES, MEANS, 64, learning_rate=NEARLY, keep=keep, **settings)
    for name in {"features": ["features"], "statistics": ["mean", "within", "reach"]}[keep]:
        last = paths[name].isel(time=-1).values.reshape(2, 64, -1).astype(float)
        column = np.flatnonzero(np.isfinite(last).all((0, 1)) & (last.std(1) > 0).all(0))[0]
        assert abs(np.corrcoef(last[:, :, column])[0, 1]) < 0.625, name


@pytest.mark.parametrize("engine", ["torchsde", "sgd"])
def test_feature_kernels_have_noise_of_their_own_at_each_learning_rate(engine):
    """Null: as above."""
    model = lesde.LESDE(lesde.FeatureKernel("s*exp(-r2)"), 2, 2, [3, 4], noise=0.3)
    paths = simulate(model, [0, 0.4], replicates=64, learning_rate=NEARLY, engine=engine)
    last = paths.features.values[:, :, -1, 0, 0].astype(float)
    assert abs(np.corrcoef(last)[0, 1]) < 0.625


@pytest.mark.parametrize("run", RUNS)
def test_global_random_state_is_left_alone(run):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the global state is what is tested
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = features(CASES[0], run, 32)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    torch.manual_seed(4)
    assert np.array_equal(first, features(CASES[0], run, 32))


def test_streams_use_all_of_the_seed():
    # torch's manual_seed keeps 32 bits on the CPU: seeds 2³² apart would give one stream.
    device = torch.device("cpu")
    for dtype in (torch.float32, torch.float64):
        seen = [
            BlockNoise(seed, cell, block, device).normal(64, dtype=dtype)
            for seed, cell, block in [(0, 0, 0), (2**32, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0)]
        ]
        for a, b in itertools.combinations(seen, 2):
            assert not torch.equal(a, b)
            assert abs(np.corrcoef(a, b)[0, 1]) < 5 / 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_and_integers_have_their_law(dtype):
    # 10⁶ draws: Kolmogorov-Smirnov at 1e-6 and the first moments at 5 standard errors.
    from scipy.stats import chisquare, kstest

    noise = BlockNoise(0, 0, 0, torch.device("cpu"))
    z = noise.normal(1000, 1000, dtype=dtype).double().numpy().ravel()
    assert kstest(z, "norm").pvalue > 1e-6
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - expected) < 5e-3 * np.sqrt(variance)
    counts = np.bincount(noise.numpy.integers(7, size=100_000), minlength=7)
    assert len(counts) == 7
    assert chisquare(counts).pvalue > 1e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("run", RUNS)
def test_cuda_runs_and_repeats(run):
    from tests.simulation.systems import moments_by_class, worst_mean

    system = make_system(*CASES[1])
    one = features(CASES[1], run, 2048, device="cuda")
    assert np.array_equal(one, features(CASES[1], run, 2048, device="cuda"))
    assert np.array_equal(one[:64], features(CASES[1], run, 64, device="cuda"))
    means, _ = moments_by_class(one[:, -1], system.counts)
    if run == "exact":
        assert worst_mean(means, system.sde_moments(MEANS, TIMES[-1])[0]) < 5
    if run == "sgd":
        assert worst_mean(means, system.sgd_moments(MEANS, 0.02, 55)[0]) < 5
