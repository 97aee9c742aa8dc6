"""LESDE: the immutable description of one system, and where its arguments are validated."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from lesde.checks import check_finite_array, check_integer, check_real, shown
from lesde.entries import EntryTable
from lesde.kernels import Kernel
from lesde.transforms import Transform, make_transform

if TYPE_CHECKING:
    import xarray as xr

    from lesde.derivation import Derivation

__all__ = ["LESDE"]


class LESDE:
    """A locally elastic SDE: K classes of samples in R^p that move each other through a kernel.

    dX_i = b_{k(i)} dt + σ dW_i with drift b_k = Σ_l w_l E_kl(t) H_l X̄^l, where w_l = n_l/N and X̄^l is
    the mean of class l.

    Parameters
    ----------
    kernel : Kernel
        Class-to-class elasticity E_kl(t).
    n_classes, n_features : int
        K and p.
    n_per_class : int or sequence of K ints, default 100
        Samples of each class; a sequence makes the classes unbalanced.
    transform : {"identity", "logits"} or array (p, p) or (K, p, p), default "identity"
        The matrices H_l. "logits" needs p = K.
    noise : float or array, default 0.1
        The diffusion σ, per square root of time: a number; (K,) numbers, one a class; a (p, p)
        factor with covariance σσᵀ; or (K, p, p) factors.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was given and what is allowed.

    References
    ----------
    Zhang, Wang, Su, NeurIPS 2021 (arXiv 2110.05960).

    Examples
    --------
    >>> import lesde
    >>> model = lesde.LESDE(lesde.TwoLevel("2/(1+t)", -0.5), n_classes=3, n_features=3)
    >>> model.n_samples
    300
    """

    def __init__(
        self,
        kernel: Kernel,
        n_classes: int,
        n_features: int,
        n_per_class: int | Sequence[int] = 100,
        transform: Any = "identity",
        noise: Any = 0.1,
    ):
        if not isinstance(kernel, Kernel):
            raise TypeError(
                f"kernel must be an elasticity kernel such as lesde.TwoLevel(alpha=2, beta=-1); got "
                f"{shown(kernel)}."
            )
        self.kernel = kernel
        self.n_classes = check_integer("n_classes", n_classes)
        self.n_features = check_integer("n_features", n_features)
        self.counts = _counts(n_per_class, self.n_classes)
        self.transform: Transform = make_transform(transform, self.n_classes, self.n_features)
        self.noise = _noise(noise, self.n_classes, self.n_features)
        self.entries: EntryTable = kernel.entries(self.n_classes)
        self.counts.setflags(write=False)
        self.noise.setflags(write=False)
        object.__setattr__(self, "_frozen", True)

    def __setattr__(self, name: str, value: Any) -> None:
        # cached_property writes to __dict__ and does not come here.
        if getattr(self, "_frozen", False):
            raise AttributeError(
                f"a LESDE is immutable, so {name} cannot be set; make another with model.replace"
                f"({name}=...)."
            )
        object.__setattr__(self, name, value)

    def replace(self, **changes: Any) -> LESDE:
        """Another model, with the given arguments changed."""
        arguments: dict[str, Any] = {
            "kernel": self.kernel,
            "n_classes": self.n_classes,
            "n_features": self.n_features,
            "n_per_class": int(self.counts[0]) if self.is_balanced else self.counts.tolist(),
            "transform": self.transform,
            "noise": self.noise if self.noise.ndim else float(self.noise),
        }
        unknown = sorted(set(changes) - set(arguments))
        if unknown:
            raise TypeError(f"replace knows {', '.join(arguments)}; got {', '.join(unknown)}.")
        return LESDE(**{**arguments, **changes})

    @property
    def n_samples(self) -> int:
        """N, the samples of all classes together."""
        return int(self.counts.sum())

    @property
    def weights(self) -> np.ndarray:
        """w_k = n_k/N, shape (class,), float64."""
        return self.counts / self.n_samples

    @property
    def labels(self) -> np.ndarray:
        """Class of every sample, shape (sample,), sorted."""
        return np.repeat(np.arange(self.n_classes), self.counts)

    @property
    def is_balanced(self) -> bool:
        """Whether all classes have equally many samples."""
        return bool((self.counts == self.counts[0]).all())

    def transform_array(self) -> np.ndarray:
        """H_l of every class, shape (class, feature, feature), float64."""
        return self.transform.array()

    def noise_factor(self) -> np.ndarray:
        """The factor σ_k of every class, shape (class, feature, feature), float64."""
        K, p = self.n_classes, self.n_features
        if self.noise.ndim < 2:
            scale = np.broadcast_to(self.noise, (K,))
            return scale[:, None, None] * np.eye(p)
        return np.broadcast_to(self.noise, (K, p, p))

    def noise_covariance(self) -> np.ndarray:
        """σ_k σ_kᵀ, per sample and unit time, shape (class, feature, feature), float64."""
        factor = self.noise_factor()
        return factor @ np.swapaxes(factor, -1, -2)

    @cached_property
    def _derivation(self) -> Derivation:
        from lesde.derivation import Derivation

        return Derivation(self)

    def derive(self) -> Derivation:
        """Derive drift, diffusion, modes, closed forms and rates from the microscopic rule."""
        return self._derivation

    def law(self, times: Any, initial: Any = None) -> xr.Dataset:
        """The exact Gaussian law at the given times; see :func:`lesde.law.exact_law`."""
        from lesde.law import exact_law

        return exact_law(self, times, initial)

    def describe(self) -> dict[str, Any]:
        """The model as plain numbers and text, for the attributes of a dataset."""
        matrices = self.transform.matrices
        return {
            "kernel": self.kernel.describe(),
            "n_classes": self.n_classes,
            "n_features": self.n_features,
            "n_per_class": self.counts.tolist(),
            "transform": self.transform.kind if matrices is None else matrices.tolist(),
            "noise": self.noise.tolist(),
        }

    def __repr__(self) -> str:
        counts = int(self.counts[0]) if self.is_balanced else self.counts.tolist()
        noise = float(self.noise) if self.noise.ndim == 0 else f"array{self.noise.shape}"
        return (
            f"LESDE({self.kernel!r}, n_classes={self.n_classes}, n_features={self.n_features}, "
            f"n_per_class={counts}, transform={self.transform.kind!r}, noise={noise})"
        )


def _counts(value: Any, n_classes: int) -> np.ndarray:
    if np.ndim(value) == 1 and not isinstance(value, str):
        value = np.asarray(value) if not isinstance(value, Sequence) else value
        if len(value) != n_classes:
            raise ValueError(
                f"n_per_class must be one integer or {n_classes} of them, one a class; got "
                f"{len(value)} values."
            )
        return np.array([check_integer(f"n_per_class[{k}]", n) for k, n in enumerate(value)])
    return np.full(n_classes, check_integer("n_per_class", value))


def _noise(value: Any, n_classes: int, n_features: int) -> np.ndarray:
    if np.ndim(value) == 0:
        return np.array(check_real("noise", value, 0.0))
    p = n_features
    array = check_finite_array("noise", value, [(n_classes,), (p, p), (n_classes, p, p)])
    if array.ndim == 1 and (array < 0).any():
        k = int(np.argmax(array < 0))
        raise ValueError(
            f"noise must not be negative; got {array[k]:g} for class {k}. Noise is the diffusion σ, "
            f"whose square is a variance per unit time."
        )
    return array.copy()
