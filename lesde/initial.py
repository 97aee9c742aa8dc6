"""Reading the argument ``initial`` of laws and simulations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lesde.checks import check_finite_array

if TYPE_CHECKING:
    from lesde.model import LESDE

__all__ = ["Initial", "class_average", "read_initial"]


@dataclass(frozen=True)
class Initial:
    """The initial state of a model, split into class means and deviations.

    Attributes
    ----------
    means : ndarray (..., class, feature), or None
        None stands for random means, N(0, I/p).
    offsets : ndarray (..., sample, feature), or None
        Deviations of the samples from their class mean; None where all are zero.
    """

    means: np.ndarray | None
    offsets: np.ndarray | None

    @property
    def is_random(self) -> bool:
        """Whether the means are drawn."""
        return self.means is None


def class_average(samples: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Class means (..., class, feature) of samples (..., sample, feature) sorted by class."""
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.add.reduceat(samples, starts, axis=-2) / counts[:, None]


def read_initial(model: LESDE, initial: Any, replicates: int | None = None) -> Initial:
    """Class means and deviations from what a user gives.

    Parameters
    ----------
    initial : None, or array
        None: random means. (class, feature): the means, every sample at its mean. (sample, feature):
        the samples, sorted by class. With ``replicates`` also either of these with a leading
        replicate dimension.
    """
    if initial is None:
        return Initial(None, None)
    K, p, N = model.n_classes, model.n_features, model.n_samples
    shapes: list[tuple[int | str, ...]] = [(K, p), (N, p)]
    if replicates is not None:
        shapes += [(replicates, K, p), (replicates, N, p)]
    array = check_finite_array("initial", _by_name(initial), shapes)
    if array.shape[-2] == K and K != N:
        return Initial(array, None)
    means = class_average(array, model.counts)
    offsets = array - np.repeat(means, model.counts, axis=-2)
    return Initial(means, offsets if np.any(offsets) else None)


def _by_name(initial: Any) -> Any:
    """An array in the order (replicate, class or sample, feature), by the names of a DataArray."""
    dims = getattr(initial, "dims", None)
    if dims is None:
        return initial
    order = [dim for dim in ("replicate", "class", "sample", "feature") if dim in dims]
    if len(order) == len(dims):
        return initial.transpose(*order).values
    if set(order):
        raise ValueError(
            f"initial has the dimensions {', '.join(map(repr, dims))}; name them 'class' or 'sample', "
            f"'feature', and optionally 'replicate'."
        )
    return initial.values
