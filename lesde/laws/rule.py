"""The microscopic rule in numbers: drift, kicks and sampling noise, of torch tensors (or NumPy arrays).

The law, the moments, the engines and the fits, all of which move class means or samples, take their equations
from here. Factors come from the derivation's tables: ``coefficients.weights(times)`` is w_l E_kl(t), the
class matrix of the drift, and ``coefficients.kicks(times)`` is E_kl(t), the factor of a kick. Everything
works on any leading batch, in float32 or float64 (the dtype of what is given), on the CPU or a GPU, and
under autograd; :func:`drift` and :func:`sampling_covariance` take NumPy arrays as well, which cost less
where they are small.

Class means are ``(..., class, feature)``. Engines that hold many replicates side by side keep them behind
the class, ``(..., class, replicate, feature)``, so that one product serves all: they pass
``class_axis=-3``.

>>> import lesde, torch
>>> from lesde.laws.rule import Transforms, drift
>>> model = lesde.LESDE(lesde.TwoLevel(2, -1), n_classes=2, n_features=1)
>>> weights = torch.from_numpy(lesde.derive(model).coefficients().weights([0.0])[0])
>>> drift(Transforms(model.transform), weights, torch.tensor([[1.0], [-1.0]], dtype=torch.float64)).tolist()
[[1.5], [-1.5]]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lesde.model.transforms import Transform, logit_directions


class Transforms:
    """The maps x ↦ H_l x of all classes as tensors, with their structure.

    The identity does nothing, "logits" subtracts a mean and scales, and only ``matrices`` that a user gave
    (class, feature, feature) are multiplied.

    Parameters
    ----------
    transform : Transform
        Of a model: ``model.transform`` or ``coefficients.transform``.
    dtype : torch.dtype, default torch.float64
        Of the matrices, where there are any; that of what they will be applied to.
    device : default "cpu"
    """

    def __init__(
        self, transform: Transform, dtype: torch.dtype = torch.float64, device: Any = "cpu"
    ):
        self.kind, self.is_shared = transform.kind, transform.is_shared
        self.n_classes, self.n_features = transform.n_classes, transform.n_features
        self._plain = transform
        self.matrices: torch.Tensor | None = None
        if self.kind == "matrix":
            self.matrices = torch.tensor(transform.array(), dtype=dtype, device=device)
            self._turned = self.matrices.mT.contiguous()

    def __call__(self, x: Any, class_axis: int = -2) -> Any:
        """H_l x^l for x with a class axis and features last."""
        if self.kind == "identity":
            return x
        if isinstance(x, np.ndarray):
            assert class_axis == -2
            return self._plain(x)
        if self.matrices is not None:
            if class_axis == -2:
                return (self.matrices @ x.unsqueeze(-1)).squeeze(-1)
            return x @ self._turned
        # H_l x = d_l ⟨d_l, x⟩/‖d_l‖², with d_l = e_l − 1/K, ⟨d_l, x⟩ = x_l − mean(x) and ‖d_l‖² = 1 − 1/K.
        K = self.n_classes
        own = x.diagonal(dim1=class_axis, dim2=-1)  # the class comes last
        score = (own.movedim(-1, class_axis + 1) - x.mean(-1)) / (1 - 1 / K)
        pushed = (score / -K).unsqueeze(-1).repeat_interleave(K, -1)
        pushed.diagonal(dim1=class_axis, dim2=-1).add_(score.movedim(class_axis + 1, -1))
        return pushed

    def rows(self, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """H_l x for vectors x (..., feature) that are each of a class of their own, classes (...)."""
        if self.kind == "identity":
            return x
        if self.matrices is not None:
            if self.is_shared:
                return x @ self.matrices[0].mT
            return (self.matrices[classes] @ x.unsqueeze(-1)).squeeze(-1)
        K = self.n_classes
        place = classes.unsqueeze(-1)
        score = (x.gather(-1, place) - x.mean(-1, keepdim=True)) / (1 - 1 / K)
        return (score / -K).expand(x.shape).scatter_add(-1, place, score)

    def array(self) -> torch.Tensor:
        """H_l written out, (class, feature, feature), float64 on the CPU."""
        return torch.tensor(self._plain.array())

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """U (class, feature, rank) and V (class, rank, feature) with H_l = U_l V_l, of the smallest rank."""
        if self.kind == "logits":
            # By hand: the signs of an SVD would hide that the classes are alike.
            d = torch.from_numpy(logit_directions(self.n_classes))
            return d[:, :, None], d[:, None, :] / (1 - 1 / self.n_classes)
        H = self.array()
        u, singular, v = torch.linalg.svd(H[:1] if self.is_shared else H)
        least = singular.max() * self.n_features * torch.finfo(H.dtype).eps
        rank = max(1, int((singular > least).sum(1).max()))
        left, right = u[:, :, :rank] * singular[:, None, :rank], v[:, :rank]
        return tuple(part.expand(len(H), -1, -1) for part in (left, right))

    def blocks(self, matrix: torch.Tensor) -> torch.Tensor:
        """The map Σ_l A_kl H_l x^l as a matrix (..., K·p, K·p), of A (..., class, class); for small K·p."""
        size = self.n_classes * self.n_features
        whole = matrix[..., :, None, :, None] * self.array().to(matrix).transpose(0, 1)
        return whole.reshape(*matrix.shape[:-2], size, size)


def drift(transforms: Transforms, weights: Any, means: Any, class_axis: int = -2) -> Any:
    """The drift b_k = Σ_l w_l E_kl H_l X̄^l of every class, in the shape of ``means``.

    ``weights`` (..., class, class) are w_l E_kl(t); their leading dimensions broadcast against those of the means
    before the class. There is one product for each leading index, whose rounding does not depend on how many there
    are. The same sum with other factors is the same function: with E_kl √w_l it spreads sampling noise, with d/dt
    of w_l E_kl it is the drift's slope.
    """
    shape = means.shape
    pushed = transforms(means, class_axis).reshape(*shape[: len(shape) + class_axis + 1], -1)
    if isinstance(pushed, torch.Tensor) and weights.dim() < pushed.dim():
        # A product for each, where torch would fold them into one.
        weights = weights.expand(*pushed.shape[:-2], -1, -1)
    moved = weights @ pushed
    return moved.reshape(*moved.shape[:-1], *shape[class_axis + 1 :])


def kick(
    transforms: Transforms, columns: torch.Tensor, drawn: torch.Tensor, classes: torch.Tensor
) -> torch.Tensor:
    """The kick E_kL H_L x_J that every class k gets from the sample drawn; SGD's step is h times this.

    ``columns`` (..., class) are E_kL(t), L the class of the sample drawn, ``drawn`` (..., feature) its features
    x_J and ``classes`` (...) L; the result is (..., class, feature). With strengths κ_iJ of samples in place
    of classes it is the kick that every sample gets.
    """
    return columns.unsqueeze(-1) * transforms.rows(drawn, classes).unsqueeze(-2)


def sampling_covariance(
    transforms: Transforms, kicks: Any, shares: Any, means: Any, second: Any
) -> Any:
    """The covariance of one kick, C_km = Σ_l w_l E_kl E_ml H_l S_l H_lᵀ − b_k b_mᵀ, over all classes.

    Here S_l = X̄^l X̄^lᵀ + T_l, and products of the means are taken of their differences from b, so that
    nothing cancels. With T_l the covariance within class l this is C. Where the class means are random,
    with mean ``means`` and a covariance V, E C is this with V_ll added to T_l, less M V Mᵀ (M the map of
    :func:`drift`).

    ``kicks`` (..., class, class) are E_kl(t), ``shares`` (class,) w_l = n_l/N, ``means`` (..., class, feature) X̄ and
    ``second`` (..., class, feature, feature) T_l; the result is (..., K·p, K·p), class first.
    """
    K, p = means.shape[-2:]
    pushed, weighted = transforms(means), kicks * shares
    apart = kicks[..., None] * pushed[..., None, :, :] - (weighted @ pushed)[..., None, :]
    columns = apart.swapaxes(-1, -2)  # (moved class, feature, drawn class)
    columns = columns.reshape(*columns.shape[:-3], K * p, K)
    spread = second
    if transforms.kind != "identity":
        # H_l T_l, as T_l is symmetric: (column, class, row)
        turned = transforms(second.swapaxes(-3, -2))
        spread = transforms(turned.swapaxes(-3, -1)).swapaxes(-3, -2)
    pairs = weighted[..., None, :] * kicks[..., None, :, :]  # E_kl w_l E_ml: (k, m, l)
    blocks = pairs.reshape(*pairs.shape[:-3], K * K, K) @ spread.reshape(*spread.shape[:-2], p * p)
    blocks = blocks.reshape(*blocks.shape[:-2], K, K, p, p).swapaxes(-3, -2)
    whole = (columns * shares) @ columns.swapaxes(-1, -2)
    return whole + blocks.reshape(*blocks.shape[:-4], K * p, K * p)


def sampling_noise(
    transforms: Transforms,
    kicks: torch.Tensor,
    shares: torch.Tensor,
    means: torch.Tensor,
    mean_drift: torch.Tensor,
    numbers: torch.Tensor,
    deviations: torch.Tensor,
    class_axis: int = -2,
) -> torch.Tensor:
    """C^{1/2} applied to normals: the sampling noise of every class, without a matrix of classes and features.

    Σ_l √w_l [E_kl H_l (X̄^l z_l + d_l) − b_k z_l] has covariance C, for independent z_l ~ N(0, 1) and d_l ~
    N(0, W_l), W_l the covariance within class l. With one normal ξ_j per sample, d_l = n_l^{-1/2} Σ_j Y_j ξ_j
    is such, Y_j the deviations of the samples of class l from its mean. Every sample of class k gets the same
    increment, √(h dt) times this.

    ``kicks`` and ``shares`` are as for :func:`sampling_covariance`; ``means`` X̄, their drift ``mean_drift`` b (of the
    plain equation), ``numbers`` z_l (with one feature) and ``deviations`` d_l are laid out as :func:`drift` takes them.
    """
    roots = shares.sqrt()
    moved = drift(transforms, kicks * roots, means * numbers + deviations, class_axis)
    along = roots.view(-1, *(1,) * (-1 - class_axis))
    return moved - mean_drift * (numbers * along).sum(class_axis, keepdim=True)


Push = Callable[[Any], Any]
"""A linear map of class means."""


def modified_drift(push: Push, slope: Push, means: Any, rate: float) -> Any:
    """The drift of the modified equation, b − (h/2)(M b + Ṁ x), of class means x; b where h is 0.

    ``push`` is x ↦ M x = Σ_l w_l E_kl(t) H_l x^l, ``slope`` x ↦ Ṁ x, the same with the time derivative of
    w_l E_kl (see :func:`lesde.laws.slopes.drift_derivative`), and ``rate`` the learning rate h.
    """
    plain = push(means)
    return plain - 0.5 * rate * (push(plain) + slope(means))


def modified_noise(push: Push, noise: Any, rate: float) -> Any:
    """(1 − hM/2) applied to the noise of the class means ν_k, with ``push`` x ↦ M x and the learning rate h.

    What it adds to the mean of class k, −(h/2) Σ_l w_l E_kl H_l ν_l, is added to every sample of class k:
    the deviations of samples from their class mean have no other noise than in the plain SDE. Where σ
    depends on time, both are to be made with σ − (h/2)σ̇ (see :func:`lesde.laws.slopes.noise_derivative`).
    """
    return noise - 0.5 * rate * push(noise)
