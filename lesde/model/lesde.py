"""LESDE: the immutable description of one system, where its arguments are checked, and its initial state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np

from lesde.checks import bare_array, check_finite_array, check_integer, check_real, shown
from lesde.model.formula import TIME, EntryTable
from lesde.model.kernels import Kernel
from lesde.model.noise import Noise, read_noise
from lesde.model.transforms import Transform, make_transform

MOST_CLASSES = 10**4
"""Tables of a kernel have an entry for every pair of classes."""


class LESDE:
    """A locally elastic SDE: K classes of samples in R^p that move each other through a kernel.

    dX_i = b_{k(i)} dt + σ dW_i with drift b_k = Σ_l w_l E_kl(t) H_l X̄^l, where w_l = n_l/N and X̄^l is
    the mean of class l.

    Parameters
    ----------
    kernel : Kernel
        Class-to-class elasticity E_kl(t), or a :class:`lesde.FeatureKernel`, whose strength depends on
        the features of both samples.
    n_classes, n_features : int
        K and p.
    n_per_class : int or sequence of K ints, default 100
        Samples of each class; a sequence makes the classes unbalanced.
    transform : {"identity", "logits"} or array (p, p) or (K, p, p), default "identity"
        The matrices H_l. "logits" needs p = K.
    noise : value, or array or nested list of values, default 0.1
        The diffusion σ, per square root of time: one value; (K,) values, one per class; a (p, p)
        factor with covariance σσᵀ; or (K, p, p) factors. A value is a number, a formula in t (text
        or SymPy) or a vectorised function of t; single values and values per class must not be
        negative. A formula with a name left free can be derived from but not simulated.
    parameters : mapping of str to number or None, optional
        Values of named parameters in the formulas of ``noise``; kernels have their own. None
        leaves a name free.

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
        parameters: Mapping[str, float | None] | None = None,
    ):
        if not isinstance(kernel, Kernel):
            raise TypeError(
                f"kernel must be one such as lesde.TwoLevel(2, -1); got {shown(kernel)}."
            )
        self.kernel = kernel
        self.n_classes = check_integer("n_classes", n_classes, 1, MOST_CLASSES)
        self.n_features = check_integer("n_features", n_features)
        self.counts = _counts(n_per_class, self.n_classes)
        self.transform: Transform = make_transform(transform, self.n_classes, self.n_features)
        self.noise_table: Noise = read_noise(noise, self.n_classes, self.n_features, parameters)
        self.noise: np.ndarray = self.noise_table.given
        self.parameters: dict[str, float | None] = dict(parameters or {})
        # The noise as given, as in the formulas names have been replaced by values.
        numbers = bare_array("noise", noise).dtype.kind in "biuf"
        self._arguments: dict[str, Any] = {
            **{"kernel": kernel, "n_classes": n_classes, "n_features": n_features},
            # One number where classes are alike, so that another number of classes fits.
            "n_per_class": self.counts.tolist() if np.ptp(self.counts) else int(self.counts[0]),
            "transform": self.transform,
            "noise": self.noise_table.describe() if numbers else deepcopy(noise),
            "parameters": self.parameters or None,
        }
        # A kernel that depends on the features has no table; callers ask for that first.
        self.entries: EntryTable = (
            None if kernel.depends_on_features else kernel.entries(self.n_classes)  # type: ignore[assignment]
        )
        self.counts.setflags(write=False)
        object.__setattr__(self, "_frozen", True)

    def __setattr__(self, name: str, value: Any) -> None:
        # cached_property writes to __dict__ and bypasses this.
        if getattr(self, "_frozen", False):
            raise AttributeError(f"a LESDE is immutable; make another with replace({name}=...).")
        object.__setattr__(self, name, value)

    def replace(self, **changes: Any) -> LESDE:
        """Another model, with the given arguments changed."""
        if unknown := sorted(set(changes) - set(self._arguments)):
            known = ", ".join(self._arguments)
            raise TypeError(f"replace knows {known}; got {', '.join(unknown)}.")
        return LESDE(**{**self._arguments, **changes})

    @property
    def free_parameters(self) -> tuple[str, ...]:
        """Names in the formulas of kernel and noise that have no value yet, sorted."""
        tables = [] if self.entries is None else [self.entries]
        tables += [] if self.noise_table.is_numeric else [self.noise_table.table]
        symbols = {s for table in tables for e in table.values for s in e.free_symbols - {TIME}}
        return tuple(sorted({*map(str, symbols), *self.kernel.free_names}))

    def substitute(self, **parameters: float) -> LESDE:
        """The model with numbers in place of free names; those not given stay free.

        >>> import lesde
        >>> kernel = lesde.TwoLevel("a/(1+t)", "b", parameters={"a": None, "b": None})
        >>> model = lesde.LESDE(kernel, n_classes=3, n_features=3)
        >>> model.free_parameters
        ('a', 'b')
        >>> model.substitute(a=2, b=-0.5).kernel
        TwoLevel(alpha=2/(t + 1), beta=-1/2)
        """
        free = self.free_parameters
        if unknown := sorted(set(parameters) - set(free)):
            raise TypeError(
                f"substitute knows the free names of the model, {', '.join(free) or 'which has none'}; "
                f"got {', '.join(unknown)}."
            )
        return (
            self
            if not parameters
            else self.replace(
                kernel=self.kernel.with_parameters(parameters),
                parameters={**self.parameters, **parameters},
            )
        )

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
        """True if all classes have equally many samples."""
        return bool((self.counts == self.counts[0]).all())

    def transform_array(self) -> np.ndarray:
        """H_l of every class, shape (class, feature, feature), float64."""
        return self.transform.array()

    def noise_factor(self, time: float | None = None) -> np.ndarray:
        """The factor σ_k of every class, shape (class, feature, feature), float64.

        At a time, which may be left out where the noise does not depend on it.
        """
        if time is None and not self.noise_table.is_constant:
            raise ValueError("time must be given, as the noise depends on it; got None.")
        return self.noise_table.factor([0.0 if time is None else check_real("time", time)])[0]

    def describe(self) -> dict[str, Any]:
        """The model as plain numbers and text, for the attributes of a dataset."""
        matrices = self.transform.matrices
        return {
            "kernel": self.kernel.describe(),
            "n_classes": self.n_classes,
            "n_features": self.n_features,
            "n_per_class": self.counts.tolist(),
            "transform": self.transform.kind if matrices is None else matrices.tolist(),
            "noise": self.noise_table.describe(),
        }

    def __repr__(self) -> str:
        counts = int(self.counts[0]) if self.is_balanced else self.counts.tolist()
        return (
            f"LESDE({self.kernel!r}, n_classes={self.n_classes}, n_features={self.n_features}, "
            f"n_per_class={counts}, transform={self.transform.kind!r}, "
            f"noise={self.noise_table!r})"
        )


def _counts(value: Any, n_classes: int) -> np.ndarray:
    several = isinstance(value, Sequence | np.ndarray)
    if not several or np.ndim(bare_array("n_per_class", value)) != 1:
        return np.full(n_classes, check_integer("n_per_class", value))
    if len(value) != n_classes:
        wanted = f"one integer or {n_classes} of them, one per class"
        raise ValueError(f"n_per_class must be {wanted}; got {len(value)} values.")
    return np.array([check_integer(f"n_per_class[{k}]", n) for k, n in enumerate(value)])


@dataclass(frozen=True)
class Initial:
    """The initial state of a model: class means (..., class, feature), and deviations from them.

    ``means`` is None where they are drawn from N(0, I/p); ``offsets`` (..., sample, feature) where all are zero.
    """

    means: np.ndarray | None
    offsets: np.ndarray | None

    @property
    def is_random(self) -> bool:
        """True if the means are drawn."""
        return self.means is None


def class_average(samples: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Class means (..., class, feature) of samples (..., sample, feature) sorted by class."""
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.add.reduceat(samples, starts, axis=-2) / counts[:, None]


def read_initial(model: LESDE, initial: Any, replicates: int | None = None) -> Initial:
    """Class means and deviations from the argument ``initial``.

    None: random means. (class, feature): the means, every sample at its mean. (sample, feature): the samples, by
    class. With ``replicates`` these may have a leading replicate dimension. A DataArray is read by its dimensions.
    """
    if initial is None:
        return Initial(None, None)
    K, p, N = model.n_classes, model.n_features, model.n_samples
    shapes: list[tuple[int | str, ...]] = [(K, p), (N, p)]
    if replicates is not None:
        shapes += [(replicates, K, p), (replicates, N, p)]
    if dims := getattr(initial, "dims", None):
        order = [dim for dim in ("replicate", "class", "sample", "feature") if dim in dims]
        if order and len(order) < len(dims):
            known = "'class' or 'sample', 'feature', and optionally 'replicate'"
            given = ", ".join(map(repr, dims))
            raise ValueError(f"initial has the dimensions {given}; name them {known}.")
        initial = initial.transpose(*order).values if order else initial.values
    array = check_finite_array("initial", initial, shapes)
    if array.shape[-2] == K and K != N:
        return Initial(array, None)
    means = class_average(array, model.counts)
    offsets = array - np.repeat(means, model.counts, axis=-2)
    return Initial(means, offsets if np.any(offsets) else None)
