"""Feature transforms H: the part of a drawn sample's features that moves the others.

With ``H = I`` (the I-model) features pull along themselves; with ``H_l = d_l d_lᵀ/‖d_l‖²``, ``d_l = e_l − 1/K``
(the L-model) only their component along the class's logit direction counts (Zhang, Wang, Su, NeurIPS 2021,
arXiv 2110.05960).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lesde.checks import check_choice, check_finite_array


def logit_directions(n_classes: int) -> np.ndarray:
    """The directions d_l = e_l − 1/K, shape (class, feature) = (K, K); they sum to zero."""
    return np.eye(n_classes) - 1.0 / n_classes


@dataclass(frozen=True)
class Transform:
    """The matrices H_l of all classes.

    ``kind`` is "identity", "logits" or "matrix"; only of the last there are ``matrices`` (class, feature, feature),
    as the structure of the others needs none.
    """

    kind: str
    n_classes: int
    n_features: int
    matrices: np.ndarray | None = None

    def array(self) -> np.ndarray:
        """H_l of every class, shape (class, feature, feature), float64."""
        if self.matrices is not None:
            return self.matrices
        K, p = self.n_classes, self.n_features
        if self.kind == "identity":
            return np.broadcast_to(np.eye(p), (K, p, p))
        d = logit_directions(K)
        return d[:, :, None] * d[:, None, :] / (d**2).sum(1)[:, None, None]

    def norms(self) -> np.ndarray:
        """Spectral norms of the H_l, shape (class,)."""
        if self.matrices is None:
            return np.ones(self.n_classes)
        return np.linalg.norm(self.matrices, 2, (1, 2))

    @property
    def is_shared(self) -> bool:
        """True if all classes have the same matrix."""
        if self.matrices is not None:
            return bool((self.matrices == self.matrices[:1]).all())
        return self.kind == "identity" or self.n_classes == 1

    def __call__(self, means: np.ndarray) -> np.ndarray:
        """H_l X^l for features (..., class, feature)."""
        if self.kind == "identity":
            return means
        if self.kind == "logits":
            # d_l ⟨d_l, x⟩/‖d_l‖² without a matrix: ⟨d_l, x⟩ = x_l − mean(x), ‖d_l‖² = 1 − 1/K.
            K = self.n_classes
            scale = (means.diagonal(0, -2, -1) - means.mean(-1)) / (1.0 - 1.0 / K)
            return scale[..., None] * logit_directions(K).astype(means.dtype)
        return (self.array().astype(means.dtype) @ means[..., None])[..., 0]


def make_transform(value: Any, n_classes: int, n_features: int) -> Transform:
    """The transform that "identity", "logits" or an array of shape (p, p), for all classes, or (K, p, p) means."""
    if isinstance(value, Transform):
        value = value.kind if value.matrices is None else value.matrices
    if isinstance(value, str):
        kind = check_choice("transform", value, ("identity", "logits"))
        if kind == "logits" and n_features != n_classes:
            given = f"n_classes={n_classes} and n_features={n_features}"
            raise ValueError(f"transform='logits' needs one feature per class; got {given}.")
        if kind == "logits" and n_classes < 2:
            raise ValueError("transform='logits' needs at least 2 classes; got n_classes=1.")
        return Transform(kind, n_classes, n_features)
    p = n_features
    array = check_finite_array("transform", value, [(p, p), (n_classes, p, p)])
    matrices = np.ascontiguousarray(np.broadcast_to(array, (n_classes, p, p)))
    matrices.setflags(write=False)
    return Transform("matrix", n_classes, n_features, matrices)
