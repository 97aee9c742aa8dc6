"""The rule in numbers against sums over draws written out, in either layout, with and without structure."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lesde.laws.rule import Transforms, drift, kick, sampling_covariance, sampling_noise
from lesde.model.transforms import make_transform

K, RNG = 4, np.random.default_rng(3)
GIVEN = {
    "identity": ("identity", 3),
    "logits": ("logits", K),
    "shared": (RNG.normal(size=(3, 3)), 3),
    "matrices": (RNG.normal(size=(K, 3, 3)), 3),
}


@pytest.fixture(params=GIVEN)
def system(request):
    """Transforms as tensors, their matrices written out, E, w and class means of six replicates."""
    given, p = GIVEN[request.param]
    d = np.eye(K) - 1 / K
    H = {
        "identity": np.stack([np.eye(p)] * K),
        "logits": np.einsum("li,lj->lij", d, d) / (d**2).sum(1)[:, None, None],
        "shared": np.broadcast_to(given, (K, p, p)) if request.param == "shared" else None,
        "matrices": given,
    }[request.param]
    rng = np.random.default_rng(5)
    shares = rng.dirichlet(np.ones(K))
    numbers = (H, rng.normal(size=(K, K)), shares, rng.normal(size=(6, K, p)))
    return Transforms(make_transform(given, K, p)), *map(torch.tensor, numbers)


def test_drift_is_the_weighted_sum_in_either_layout(system):
    transforms, H, E, shares, means = system
    expected = torch.einsum("kl,lij,rlj->rki", E * shares, H, means)
    torch.testing.assert_close(drift(transforms, E * shares, means), expected, rtol=1e-12, atol=0)
    side_by_side = drift(transforms, E * shares, means.movedim(0, 1), class_axis=-3)
    torch.testing.assert_close(side_by_side.movedim(0, 1), expected, rtol=1e-12, atol=1e-14)
    blocks = transforms.blocks(E * shares) @ means.flatten(1).T
    torch.testing.assert_close(blocks.T.reshape(means.shape), expected, rtol=1e-12, atol=1e-14)
    arrays = drift(transforms, (E * shares).numpy(), means.numpy())
    np.testing.assert_allclose(arrays, expected, rtol=1e-12, atol=1e-14)
    several = torch.stack([E, 2 * E])[:, None]  # at two times, over all replicates
    torch.testing.assert_close(drift(transforms, several * shares, means)[1], 2 * expected)


def test_kick_is_that_of_the_sample_drawn(system):
    transforms, H, E, _, means = system
    classes = torch.tensor([0, 3, 1, 1, 2, 0])
    drawn = means[:, 0]
    expected = torch.einsum("rk,rij,rj->rki", E[:, classes].T, H[classes], drawn)
    found = kick(transforms, E[:, classes].T, drawn, classes)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_sampling_covariance_is_that_of_every_draw(system):
    """Classes of 2, 5, 3 and 4 samples: the covariance of the kick over all 14 draws."""
    transforms, H, E, _, _ = system
    counts, p = [2, 5, 3, 4], H.shape[-1]
    labels = np.repeat(np.arange(K), counts)
    X = torch.tensor(np.random.default_rng(8).normal(size=(14, p)) + labels[:, None])
    kicks = torch.einsum("kj,jab,jb->jka", E[:, labels], H[labels], X).flatten(1)
    expected = torch.cov(kicks.T, correction=0)
    means = torch.stack([X[labels == k].mean(0) for k in range(K)])
    within = torch.stack([torch.cov(X[labels == k].T, correction=0) for k in range(K)])
    shares = torch.tensor(counts) / torch.tensor(14.0, dtype=torch.float64)
    C = sampling_covariance(transforms, E, shares, means, within)
    torch.testing.assert_close(C, expected, rtol=1e-12, atol=1e-13)
    arrays = (x.numpy() for x in (E, shares, means, within))
    np.testing.assert_allclose(sampling_covariance(transforms, *arrays), C, atol=1e-13)
    # The noise is linear in its normals; fed unit ones it squares to the covariance.
    size = K * (p + 1)
    units = torch.eye(size, dtype=torch.float64).unflatten(1, (K, p + 1))
    roots = torch.linalg.cholesky(within + 1e-14 * torch.eye(p))
    deviations = (roots @ units[..., 1:, None]).squeeze(-1)
    b = drift(transforms, E * shares, means)
    noise = sampling_noise(transforms, E, shares, means, b, units[..., :1], deviations)
    torch.testing.assert_close(noise.flatten(1).T @ noise.flatten(1), C, rtol=1e-6, atol=1e-6)
    lanes = [x.unsqueeze(-2) for x in (means, b)]
    rows = [units[..., :1].movedim(0, 1), deviations.movedim(0, 1)]
    other = sampling_noise(transforms, E, shares, *lanes, *rows, class_axis=-3)
    torch.testing.assert_close(other.movedim(1, 0), noise, rtol=1e-12, atol=1e-14)


def test_gradients_and_single_precision(system):
    transforms, _, E, shares, means = system
    second = torch.eye(means.shape[-1], dtype=torch.float64).expand(K, -1, -1).clone()
    inputs = [x.clone().requires_grad_() for x in (E, means, second)]
    assert torch.autograd.gradcheck(lambda E, x, _: drift(transforms, E, x), inputs, fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda E, x, T: sampling_covariance(transforms, E, shares, x[0], T), inputs, fast_mode=True
    )
    if transforms.matrices is None:
        single = drift(transforms, E.float(), means.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(
            single.double(), drift(transforms, E, means), rtol=1e-4, atol=1e-4
        )
