"""The exact law of a linear model as tensors, with gradients."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from lesde.checks import check_times, shown
from lesde.derivation import derive
from lesde.errors import Diverged
from lesde.laws.system import TensorSystem, contrast_basis, numbers_of, read_parameters
from lesde.laws.transitions import MeanTransitions, Transition, mean_transitions, to_classes
from lesde.model.lesde import read_initial

if TYPE_CHECKING:
    from lesde.derivation.coefficients import Coefficients
    from lesde.model.lesde import LESDE

__all__ = [
    "PathLikelihood",
    "TensorLaw",
    "initial_means",
    "law",
    "path_likelihood",
    "refuse_feature_kernel",
    "tensor_law",
]


# --------------------------------------------------------------------------------------------------
# The exact Gaussian law of a linear model: class means, their covariance, spread within classes.

LARGEST_RESULT = 4e9  # bytes


def law(model: LESDE, times: Any, initial: Any = None) -> xr.Dataset:
    """The law of a model whose kernel depends on classes and time only.

    Class means and the samples' deviations from them are independent. The means are Gaussian with
    mean Φ(t, t₀) X̄(t₀) and covariance ∫ Φ(t, s) diag(σ_kσ_kᵀ/n_k) Φ(t, s)ᵀ ds. A sample's deviation is
    its initial one plus a Gaussian of covariance ∫ σ_kσ_kᵀ ds, whatever the kernel: σ_kσ_kᵀ (t − t₀)
    for a constant noise.

    Formulas are integrated between the places where they switch, however short a pulse is. A Python
    callable is seen at points only: a pulse in it is found where it lasts at least 1/5000 of the time
    from the first to the last of ``times``; one that may be shorter must contain one of ``times``.

    Parameters
    ----------
    model : LESDE
    times : array, shape (time,)
        Strictly increasing; ``times[0]`` is the time of the initial state.
    initial : None or array, optional
        (class, feature) class means, every sample at its mean; (sample, feature) samples sorted by
        class; None, the default, for random means N(0, I/p), whose covariance is then included.

    Returns
    -------
    xarray.Dataset
        ``mean`` (time, class, feature); ``covariance`` (time, class, feature, class_, feature_) of
        the class means; ``centred_mean`` and ``centred_covariance``, the same of the class means less
        the (unweighted) grand mean: where contrasts do not mix with the grand mean they keep their own
        digits, however much faster that grows, so gaps between classes are to be taken from these;
        ``within`` (time, class, feature, feature_), the covariance of a sample
        about its class's process mean that noise has built up. The empirical covariance of n_k
        samples (divisor n_k) has expectation (1 − 1/n_k) of it, plus that of the initial
        deviations. Coordinates ``label`` (sample) and ``count`` (class). Where ``initial`` gives
        the samples, also their deviations ``offset`` (sample, feature), which do not change. All
        float64, accurate to about 1e-12 relative.

    Raises
    ------
    ValueError, TypeError
        For times or initial states that are not usable, a result beyond 4 GB, or a kernel or noise that
        cannot be integrated, such as one with a pole; names its entry.
    Diverged
        Where the growth overflows.
    """
    times = check_times("times", times, minimum_length=1)
    start = read_initial(model, initial)
    K, p = model.n_classes, model.n_features
    size = 16.0 * len(times) * (K * p) ** 2
    if size > LARGEST_RESULT:
        raise ValueError(
            f"times has {len(times)} entries, for which the covariance of {K * p} class-mean features "
            f"takes {size / 1e9:.0f} GB; give fewer times, or simulate with lesde.simulate."
        )
    coefficients = derive(model).coefficients()
    with np.errstate(over="ignore", invalid="ignore"):
        steps = derive(model).transitions(times)
        basis = contrast_basis(K)
        # Coordinates: grand mean and contrasts, each with its own digits.
        mean = np.zeros((len(times), K, p))
        covariance = np.zeros((len(times), K, p, K, p))
        if start.means is None:
            covariance[0] = np.eye(K * p).reshape(K, p, K, p) / p
        else:
            mean[0] = basis.T @ start.means
        _propagate(steps, mean, covariance)
    for name, values in (("the mean of the law", mean), ("the covariance of the law", covariance)):
        finite = np.isfinite(values.reshape(len(times), -1)).all(1)
        if not finite.all():
            raise Diverged(
                times[np.argmin(finite)], name, "end `times` earlier or weaken the kernel"
            )

    centred = basis[:, 1:]
    within = _within(coefficients, times)
    data: dict[str, Any] = {
        "mean": (("time", "class", "feature"), basis @ mean, {"long_name": "class mean"}),
        "covariance": (
            ("time", "class", "feature", "class_", "feature_"),
            to_classes(covariance, basis),
            {"long_name": "covariance of the class means"},
        ),
        "centred_mean": (
            ("time", "class", "feature"),
            centred @ mean[:, 1:],
            {"long_name": "class mean less the grand mean"},
        ),
        "centred_covariance": (
            ("time", "class", "feature", "class_", "feature_"),
            to_classes(covariance[:, 1:, :, 1:], centred),
            {"long_name": "covariance of the class means less the grand mean"},
        ),
        "within": (
            ("time", "class", "feature", "feature_"),
            within,
            {"long_name": "covariance of a sample about its class's process mean"},
        ),
    }
    if start.offsets is not None:
        data["offset"] = (("sample", "feature"), start.offsets)
    coords = {
        "time": ("time", times, {"long_name": "time"}),
        "label": ("sample", model.labels),
        "count": ("class", model.counts),
    }
    attrs = {
        "model": json.dumps(model.describe()),
        "initial": "random" if start.is_random else "given",
    }
    return xr.Dataset(data, coords, attrs)


def _within(coefficients: Coefficients, times: np.ndarray) -> np.ndarray:
    """∫ σ_kσ_kᵀ from the first time, shape (time, class, feature, feature)."""
    noise = coefficients.noise
    if noise.is_constant:
        noise.check_variance(times)
        return (times - times[0])[:, None, None, None] * coefficients.noise_covariance
    parts = noise.integrated(times)
    return np.concatenate([np.zeros((1, *parts.shape[1:])), parts.cumsum(0)])


def _propagate(steps: list[Transition], mean: np.ndarray, covariance: np.ndarray) -> None:
    """Fill mean and covariance, in contrast coordinates, from their first entries, in place."""
    K, p = mean.shape[1:]
    for i, step in enumerate(steps):
        mean[i + 1] = step.apply(step.phi, mean[i])
        carried = covariance[i].reshape(K * p, K, p)
        carried = step.apply(step.phi, carried).reshape(K * p, K * p)
        carried = step.apply(step.phi, carried.T.reshape(K * p, K, p)).reshape(K, p, K, p)
        covariance[i + 1] = carried + step.contrast_covariance()


# --------------------------------------------------------------------------------------------------
# The likelihood of paths of class means under Gaussian transitions.


@dataclass(frozen=True, eq=False)
class PathLikelihood:
    """What the log-density of paths is made of, given their first state.

    With the noise's covariances multiplied by s² the log-density is
    −(quadratic/s² + log_determinant + size (log 2π + log s²))/2.

    Attributes
    ----------
    quadratic : tensor ()
        Σ eᵀC⁻¹e over intervals and replicates, e = X̄(t₁) − Φ X̄(t₀).
    log_determinant : tensor ()
        Σ log det C over the same.
    size : int
        Numbers observed: replicates × intervals × classes × features.
    """

    quadratic: torch.Tensor
    log_determinant: torch.Tensor
    size: int

    def value(self, log_scale: torch.Tensor | float = 0.0) -> torch.Tensor:
        """The log-density where noise is exp(log_scale) times that of the transitions."""
        shrink = (
            math.exp(-2 * log_scale) if isinstance(log_scale, float) else torch.exp(-2 * log_scale)
        )
        level = math.log(2 * math.pi) + 2 * log_scale
        return -(self.quadratic * shrink + self.log_determinant + self.size * level) / 2


def path_likelihood(steps: MeanTransitions, means: torch.Tensor) -> PathLikelihood:
    """The likelihood of class means, given those at the first time.

    Parameters
    ----------
    steps : MeanTransitions
    means : tensor, shape (replicate, time, class, feature), float64
        Time as in the transitions.

    Raises
    ------
    ValueError
        Where the noise leaves some direction of the class means without a density.
    """
    basis = steps.basis
    kind = torch.from_numpy(steps.kind)
    state = basis.T @ means
    error = state[:, 1:] - steps.apply(steps.phi[kind], state[:, :-1])
    R, T, K, p = error.shape
    root = _root(steps.noise)
    log_each = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)[kind]
    if steps.feature is None:
        flat = error.reshape(R, T, K * p).permute(1, 2, 0)
        white = torch.linalg.solve_triangular(root[kind], flat, upper=False)
        log_determinant = 2 * R * log_each.sum()
    else:
        shape = _root(steps.feature)
        turned = torch.linalg.solve_triangular(shape, error.reshape(-1, p).T, upper=False)
        columns = turned.reshape(p, R, T, K).permute(2, 3, 1, 0).reshape(T, K, R * p)
        white = torch.linalg.solve_triangular(root[kind], columns, upper=False)
        log_determinant = 2 * R * (p * log_each.sum() + T * K * shape.diagonal().log().sum())
    return PathLikelihood((white**2).sum(), log_determinant, R * T * K * p)


def _root(covariance: torch.Tensor) -> torch.Tensor:
    """Cholesky factors (…, n, n)."""
    root, failed = torch.linalg.cholesky_ex(covariance)
    if bool(failed.any()):
        raise ValueError(
            "noise must move the class means in every direction for their paths to have a density; the "
            "covariance of a transition is singular. Give every class noise above zero, with a factor "
            "of full rank."
        )
    return root


# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TensorLaw:
    """The law of :func:`lesde.law.law` as float64 tensors that are part of a graph.

    Made by ``lesde.tensor_law(model, times, initial, parameters={...})``.

    Attributes
    ----------
    times : tensor (time,)
    mean : tensor (time, class, feature)
        Of the class means.
    covariance : tensor (time, class, feature, class, feature)
        Of the class means.
    centred_mean, centred_covariance : tensors of the same shapes
        The same of the class means less the grand mean: gaps between classes are to be taken from
        these, which keep their digits however much faster the grand mean grows.
    within : tensor (time, class, feature, feature)
        Covariance of a sample about its class's process mean that noise has built up.
    """

    times: torch.Tensor
    mean: torch.Tensor
    covariance: torch.Tensor
    centred_mean: torch.Tensor
    centred_covariance: torch.Tensor
    within: torch.Tensor
    _steps: MeanTransitions
    _model: LESDE
    _initial: Any

    @property
    def transitions(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Φ and C of every interval, each (class, feature, class, feature).

        X̄(t₁) given X̄(t₀) is Gaussian with mean Φ X̄(t₀) and covariance C.
        """
        steps = self._steps
        p = self.within.shape[-1]
        plain = None if steps.feature is None else torch.eye(p, dtype=torch.float64)
        return [
            (
                _to_classes(steps.full(steps.phi[j], plain), steps.basis),
                _to_classes(steps.full(steps.noise[j], steps.feature), steps.basis),
            )
            for j in steps.kind.tolist()
        ]

    def log_likelihood(self, means: Any) -> torch.Tensor:
        """Log-density of observed paths of class means, given their state at the first time.

        Parameters
        ----------
        means : tensor or array, shape (replicate, time, class, feature)
            At the times of the law; without a replicate dimension one path.

        Returns
        -------
        tensor ()
            Summed over replicates and intervals: the means are Markov with Gaussian transitions. The
            law's own initial state does not enter.

        Raises
        ------
        ValueError
            For another shape, values that are not finite, or noise that leaves a direction without
            a density.
        """
        observed = torch.as_tensor(means, dtype=torch.float64)
        shape = tuple(self.mean.shape)
        if observed.dim() == 3:
            observed = observed.unsqueeze(0)
        if observed.dim() != 4 or tuple(observed.shape[1:]) != shape:
            raise ValueError(
                f"means must have shape (replicate, {', '.join(map(str, shape))}), (replicate, time, "
                f"class, feature); got {tuple(observed.shape)}."
            )
        if shape[0] < 2:
            raise ValueError("the law must hold at least 2 times for paths to have transitions.")
        if not bool(torch.isfinite(observed).all()):
            raise ValueError(
                "means must be finite. Leave out the replicates or times that are not."
            )
        return path_likelihood(self._steps, observed).value()

    def dataset(self) -> xr.Dataset:
        """The same law as ``model.law`` gives it, without gradients, computed anew by it."""
        return law(self._model, self.times.numpy(), self._initial)


def tensor_law(model: LESDE, times: Any, initial: Any = None, parameters: Any = None) -> TensorLaw:
    """The exact law with gradients to the initial means and the model's free names.

    Parameters
    ----------
    model : LESDE
        With a kernel that depends on classes and time only.
    times : array, shape (time,)
        Strictly increasing; no gradient.
    initial : None, tensor or array, optional
        (class, feature) class means or (sample, feature) samples; a tensor keeps its graph. None, the
        default: random means N(0, I/p), as of :func:`lesde.law.law`.
    parameters : mapping of str to number or 0-d tensor
        A value for every name in ``model.free_parameters``; tensors keep their graph.

    Returns
    -------
    TensorLaw
        On the CPU, equal to the law without gradients to about 1e-12 relative.

    Raises
    ------
    TypeError, ValueError
        For parameters that are missing or not in the model, formulas without a gradient (a switch
        whose place depends on a parameter that requires one), and whatever ``model.law`` refuses.
    Diverged
        Where the growth overflows.

    Examples
    --------
    >>> import torch, lesde
    >>> kernel = lesde.TwoLevel("a", 0, parameters={"a": None})
    >>> model = lesde.LESDE(kernel, n_classes=2, n_features=1)
    >>> a = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    >>> law = lesde.tensor_law(model, [0, 1], [[1.0], [0.0]], parameters={"a": a})
    >>> law.mean[-1, 0, 0].backward()  # exp(a/2)
    >>> round(float(a.grad), 6)
    1.359141
    """
    refuse_feature_kernel(model)
    saved = check_times("times", times, minimum_length=1)
    values = read_parameters(model, parameters)
    means = initial_means(model, initial)
    K, p, T = model.n_classes, model.n_features, len(saved)
    if 16.0 * T * (K * p) ** 2 > LARGEST_RESULT:
        raise ValueError(
            f"times has {T} entries, for which the covariance of {K * p} class-mean features takes "
            f"{16e-9 * T * (K * p) ** 2:.0f} GB; give fewer times."
        )
    system = TensorSystem(model, values)
    steps = mean_transitions(system, saved) if T > 1 else _no_steps(system)
    basis, n = steps.basis, len(system.right[0])
    state = None if means is None else basis.T @ means
    noise = basis.new_zeros(n, n)
    # Of random initial means N(0, I/p): their covariance is this times I/p.
    random = torch.eye(n, dtype=torch.float64) if means is None else None
    centres, covariances = [], []
    for i in range(T):
        if i > 0:
            phi, added = steps.phi[steps.kind[i - 1]], steps.noise[steps.kind[i - 1]]
            state = None if state is None else steps.apply(phi, state)
            noise = phi @ noise @ phi.mT + added
            random = None if random is None else phi @ random @ phi.mT
        centres.append(basis.new_zeros(K, p) if state is None else state)
        total = steps.full(noise, steps.feature)
        if random is not None:
            plain = None if steps.feature is None else torch.eye(p, dtype=torch.float64)
            total = total + steps.full(random, plain) / p
        if not bool(torch.isfinite(centres[-1]).all() & torch.isfinite(total).all()):
            raise Diverged(saved[i], "the law", "end `times` earlier or weaken the kernel")
        covariances.append(total)
    mean, covariance = torch.stack(centres), torch.stack(covariances)
    within = torch.cat([basis.new_zeros(1, K, p, p), steps.within]).cumsum(0)
    fixed = None if initial is None else _plain(initial)
    return TensorLaw(
        times=torch.from_numpy(saved.copy()),
        mean=basis @ mean,
        covariance=_to_classes(covariance, basis),
        centred_mean=basis[:, 1:] @ mean[:, 1:],
        centred_covariance=_to_classes(covariance[:, 1:, :, 1:], basis[:, 1:]),
        within=within,
        _steps=steps,
        _model=model.substitute(**numbers_of(values)),
        _initial=fixed,
    )


def refuse_feature_kernel(model: LESDE) -> None:
    """Raise for a kernel of the features, whose class means have no closed law."""
    if getattr(model.kernel, "depends_on_features", False):
        raise ValueError(
            f"lesde.tensor_law needs a kernel of classes and time, such as lesde.TwoLevel; got "
            f"{shown(model.kernel)}, which depends on the features."
        )


def initial_means(model: LESDE, initial: Any) -> torch.Tensor | None:
    """Class means (class, feature), float64 on the CPU, with the graph of a tensor; None for random."""
    start = read_initial(model, initial)  # checks shape and values
    if start.means is None:
        return None
    if not isinstance(initial, torch.Tensor):
        return torch.from_numpy(np.array(start.means))
    given = initial.to("cpu", torch.float64)
    if start.offsets is None and len(given) == model.n_classes:
        return given
    parts = given.split(model.counts.tolist())
    return torch.stack([part.mean(0) for part in parts])


def _plain(initial: Any) -> Any:
    return initial.detach().clone() if isinstance(initial, torch.Tensor) else initial


def _no_steps(system: TensorSystem) -> MeanTransitions:
    """The transitions of a law at one time."""
    n, K, p = len(system.right[0]), len(system.basis), system.n_features
    empty = system.basis.new_zeros(0, n, n)
    within = system.basis.new_zeros(0, K, p, p)
    return MeanTransitions(empty, empty, np.zeros(0, int), within, system.feature, system.basis)


def _to_classes(matrix: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """From (..., contrast, feature, contrast, feature) to classes."""
    return torch.einsum("ka,...aibj,lb->...kilj", basis, matrix, basis)
