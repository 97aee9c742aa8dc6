"""The exact law of a linear model as tensors, with gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lesde.checks import check_times, shown
from lesde.differentiable.likelihood import path_likelihood
from lesde.differentiable.parameters import numbers_of, read_parameters
from lesde.differentiable.system import TensorSystem
from lesde.differentiable.transitions import MeanTransitions, mean_transitions
from lesde.errors import Diverged
from lesde.initial import read_initial
from lesde.law import LARGEST_RESULT

if TYPE_CHECKING:
    import xarray as xr

    from lesde.model import LESDE

__all__ = ["TensorLaw", "initial_means", "refuse_feature_kernel", "tensor_law"]


@dataclass(frozen=True, eq=False)
class TensorLaw:
    """The law of :func:`lesde.law.exact_law` as float64 tensors that are part of a graph.

    Made by ``model.law(times, initial, differentiable=True, parameters={...})``.

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
        return self._model.law(self.times.numpy(), self._initial)


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
        default: random means N(0, I/p), as of :func:`lesde.law.exact_law`.
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
    >>> law = model.law([0, 1], [[1.0], [0.0]], differentiable=True, parameters={"a": a})
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
            f"differentiable=True needs a kernel of classes and time, such as lesde.TwoLevel; got "
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
