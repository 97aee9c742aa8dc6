"""The exact Gaussian law of a linear model: class means, their covariance, spread within classes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from lesde.checks import check_instance, check_times
from lesde.derivation import derive
from lesde.errors import Diverged
from lesde.laws.system import MeanSystem
from lesde.laws.transitions import MeanTransitions, mean_transitions
from lesde.laws.values import numbers_of, read_parameters
from lesde.model.lesde import LESDE, Initial, read_initial

LARGEST_RESULT = 4e9  # bytes


def law(model: LESDE, times: Any, initial: Any = None, parameters: Any = None) -> xr.Dataset:
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
    parameters : mapping of str to number, optional
        A value for every name in ``model.free_parameters``.

    Returns
    -------
    xarray.Dataset
        ``mean`` (time, class, feature) and ``covariance`` (time, class, feature, class_, feature_) of
        the class means; ``centred_mean`` and ``centred_covariance``, the same less the (unweighted) grand
        mean, which keep their own digits however much faster it grows: take gaps between classes from these;
        ``within`` (time, class, feature, feature_), the covariance of a sample about its class's process
        mean that noise has built up (the empirical covariance of n_k samples, divisor n_k, has expectation
        (1 − 1/n_k) of it, plus that of the initial deviations). Coordinates ``label`` (sample) and ``count``
        (class). Where ``initial`` gives the samples, also their deviations ``offset`` (sample, feature),
        which do not change. All float64, accurate to about 1e-12 relative.

    Raises
    ------
    ValueError
        For a kernel or noise that cannot be integrated, such as one with a pole, or a kernel so strong that it
        would take more than 20,000 steps; names its entry.
    Diverged
        Where the growth overflows.

    Examples
    --------
    >>> import lesde
    >>> model = lesde.LESDE(lesde.TwoLevel(alpha=2, beta=-1), n_classes=2, n_features=1, noise=0.5)
    >>> law = lesde.law(model, [0, 1], initial=[[1.0], [-1.0]])
    >>> float(law["mean"][1, 0, 0].round(3))  # exp((α − β)/K) at t = 1
    4.482
    """
    check_instance("model", model, LESDE, "a lesde.LESDE")
    if parameters is not None:
        model = model.substitute(**numbers_of(read_parameters(model, parameters)))
    with torch.no_grad():
        return _solved(model, times, initial, {}).dataset()


def tensor_law(model: LESDE, times: Any, initial: Any = None, parameters: Any = None) -> TensorLaw:
    """The exact law with gradients to the initial means and the model's free names.

    Parameters
    ----------
    model, times
        As for :func:`lesde.law`.
    initial : None, tensor or array, optional
        As for :func:`lesde.law`; a tensor keeps its graph.
    parameters : mapping of str to number or 0-d tensor
        A value for every name in ``model.free_parameters``; tensors keep their graph.

    Returns
    -------
    TensorLaw
        On the CPU, equal to the law without gradients to about 1e-12 relative.

    Raises
    ------
    ValueError
        For a switch whose place depends on a parameter that requires a gradient, and whatever
        :func:`lesde.law` refuses.
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
    check_instance("model", model, LESDE, "a lesde.LESDE")
    return _solved(model, times, initial, read_parameters(model, parameters))


@dataclass(frozen=True, eq=False)
class TensorLaw:
    """The law as float64 tensors that are part of a graph, made by :func:`lesde.tensor_law`.

    Attributes
    ----------
    times : tensor (time,)
    mean, centred_mean : tensor (time, class, feature)
    covariance, centred_covariance : tensor (time, class, feature, class, feature)
    within : tensor (time, class, feature, feature)
        As for :func:`lesde.law`.
    """

    times: torch.Tensor
    mean: torch.Tensor
    covariance: torch.Tensor
    centred_mean: torch.Tensor
    centred_covariance: torch.Tensor
    within: torch.Tensor
    _steps: MeanTransitions
    _model: LESDE
    _start: Initial

    @property
    def transitions(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Φ and C of every interval, each (class, feature, class, feature).

        X̄(t₁) given X̄(t₀) is Gaussian with mean Φ X̄(t₀) and covariance C.
        """
        return self._steps.in_classes()

    def log_likelihood(self, means: Any) -> torch.Tensor:
        """Log-density of observed paths of class means, given their state at the first time, as tensor ().

        ``means`` ([replicate,] time, class, feature) are at the times of the law. The result is summed over
        replicates and intervals: the means are Markov with Gaussian transitions. The law's own initial state
        does not enter. ValueError where the noise leaves a direction without a density.
        """
        observed, shape = torch.as_tensor(means, dtype=torch.float64), self.mean.shape
        if observed.shape == shape:
            observed = observed.unsqueeze(0)
        if observed.dim() != 4 or observed.shape[1:] != shape or shape[0] < 2:
            raise ValueError(
                f"means must have shape (replicate, {', '.join(map(str, shape))}), (replicate, time, class, "
                f"feature), with at least 2 times; got {tuple(observed.shape)}."
            )
        if not bool(torch.isfinite(observed).all()):
            raise ValueError("means must be finite. Leave out what is not.")
        return path_likelihood(self._steps, observed).value()

    def dataset(self) -> xr.Dataset:
        """The same without gradients, as :func:`lesde.law` returns it."""
        classes = ("time", "class", "feature")
        both, one = (*classes, "class_", "feature_"), (*classes, "feature_")
        meanings = {
            "mean": (classes, "class mean"),
            "covariance": (both, "covariance of the class means"),
            "centred_mean": (classes, "class mean less the grand mean"),
            "centred_covariance": (both, "covariance of the class means less the grand mean"),
            "within": (one, "covariance of a sample about its class's process mean"),
        }
        data: dict[str, Any] = {
            name: (dims, getattr(self, name).detach().numpy(), {"long_name": meaning})
            for name, (dims, meaning) in meanings.items()
        }
        if self._start.offsets is not None:
            data["offset"] = (("sample", "feature"), self._start.offsets)
        coords = {
            "time": ("time", self.times.numpy(), {"long_name": "time"}),
            "label": ("sample", self._model.labels),
            "count": ("class", self._model.counts),
        }
        attrs = {
            "model": json.dumps(self._model.describe()),
            "initial": "random" if self._start.is_random else "given",
        }
        return xr.Dataset(data, coords, attrs)


def _solved(model: LESDE, times: Any, initial: Any, values: dict[str, torch.Tensor]) -> TensorLaw:
    saved = check_times("times", times, minimum_length=1)
    start = read_initial(model, initial)
    means = None if start.means is None else torch.from_numpy(np.array(start.means))
    if isinstance(initial, torch.Tensor):  # in its graph
        means = initial.to("cpu", torch.float64)
        if start.offsets is not None or len(means) != model.n_classes:
            means = torch.stack([part.mean(0) for part in means.split(model.counts.tolist())])
    K, p, T = model.n_classes, model.n_features, len(saved)
    size = 16.0 * T * (K * p) ** 2
    if size > LARGEST_RESULT:
        raise ValueError(
            f"times has {T} entries, for which the covariance of {K * p} class-mean features "
            f"takes {size / 1e9:.0f} GB; give fewer times, or simulate with lesde.simulate."
        )
    system = MeanSystem(derive(model).coefficients(), values)
    added = system.noise.integrated(saved)
    steps = mean_transitions(system, saved)
    basis, noise, features = steps.basis, steps.noise, steps.features
    # The covariance is carried as the noise is: in parts, of classes alone where the features obey one system.
    state, parts = basis.new_zeros(K, p), noise.new_zeros(noise.shape[1:])
    if means is not None:
        state = basis.T @ means
    else:  # I/p, as one more part or in the only one
        if features is not None:
            noise = torch.nn.functional.pad(noise, (0, 0, 0, 0, 0, 1))
            features = torch.cat([features, torch.eye(p, dtype=torch.float64)[None]])
            parts = noise.new_zeros(noise.shape[1:])
        random = torch.eye(parts.shape[-1], dtype=torch.float64) / p
        parts = torch.cat([parts[:-1], random[None]])
    states, covariances = [state], [parts]
    for j in steps.kind.tolist():
        phi = steps.phi[j]
        states.append(steps.apply(phi, states[-1]))
        covariances.append(noise[j] + phi @ covariances[-1] @ phi.mT)
    mean, covariance = torch.stack(states), torch.stack(covariances)
    for name, found in (("the mean of the law", mean), ("the covariance of the law", covariance)):
        finite = torch.isfinite(found.detach()).flatten(1).all(1).numpy()
        if not finite.all():
            raise Diverged(
                saved[np.argmin(finite)], name, "end `times` earlier or weaken the kernel"
            )
    within = torch.cat([added.new_zeros(1, *added.shape[1:]), added]).cumsum(0)
    return TensorLaw(
        times=torch.from_numpy(saved.copy()),
        mean=basis @ mean,
        covariance=_covariance(covariance, features, basis),
        centred_mean=basis[:, 1:] @ mean[:, 1:],
        centred_covariance=_covariance(covariance, features, basis, 1),
        within=system.noise.covariances(within, K).contiguous(),
        _steps=steps,
        _model=model.substitute(**numbers_of(values)),
        _start=start,
    )


def _covariance(
    parts: torch.Tensor, features: torch.Tensor | None, basis: torch.Tensor, first: int = 0
) -> torch.Tensor:
    """Σ part ⊗ features of the contrasts from the first on, (time, class, feature, class, feature)."""
    B = basis[:, first:]
    if features is None:
        K = len(basis)
        whole = parts[:, 0].unflatten(2, (K, -1)).unflatten(1, (K, -1))
        return torch.einsum("ka,taibj,lb->tkilj", B, whole[:, first:, :, first:], B)
    return torch.einsum("tskl,sij->tkilj", B @ parts[..., first:, first:] @ B.mT, features)


# --------------------------------------------------------------------------------------------------
# The likelihood of paths of class means under Gaussian transitions.


@dataclass(frozen=True, eq=False)
class PathLikelihood:
    """The parts of the log-density of paths, given their first state.

    They are Σ eᵀC⁻¹e and Σ log det C over intervals and replicates, with e = X̄(t₁) − Φ X̄(t₀), and the
    numbers observed.
    """

    quadratic: torch.Tensor
    log_determinant: torch.Tensor
    size: int

    def value(self, log_scale: torch.Tensor | float = 0.0) -> torch.Tensor:
        """The log-density where noise is exp(log_scale) times that of the transitions."""
        log_scale = torch.as_tensor(log_scale, dtype=torch.float64)
        level = math.log(2 * math.pi) + 2 * log_scale
        shrunk = self.quadratic * torch.exp(-2 * log_scale)
        return -(shrunk + self.log_determinant + self.size * level) / 2


def path_likelihood(steps: MeanTransitions, means: torch.Tensor) -> PathLikelihood:
    """The likelihood of class means (replicate, time, class, feature), float64, given those at the first time.

    ValueError where the noise leaves some direction without a density, Diverged where the growth overflows.
    """
    steps.check_finite()
    kind = torch.from_numpy(steps.kind)
    state = steps.basis.T @ means
    error = state[:, 1:] - steps.apply(steps.phi[kind], state[:, :-1])
    R, T, K, p = error.shape
    log_determinant = torch.zeros((), dtype=torch.float64)
    if steps.features is not None and len(steps.features) == 1:
        root, shape = _root(steps.noise[:, 0]), _root(steps.features[0])
        turned = torch.linalg.solve_triangular(shape, error.reshape(-1, p).T, upper=False)
        columns = turned.reshape(p, R, T, K).permute(2, 3, 1, 0).reshape(T, K, R * p)
        log_determinant = 2 * R * T * K * shape.diagonal().log().sum()
    else:
        root = _root(steps.full_noise().reshape(-1, K * p, K * p))
        columns = error.reshape(R, T, K * p).permute(1, 2, 0)
    white = torch.linalg.solve_triangular(root[kind], columns, upper=False)
    copies = R * K * p // root.shape[-1]  # of each root's directions
    log_each = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)[kind].sum()
    return PathLikelihood((white**2).sum(), log_determinant + 2 * copies * log_each, error.numel())


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
