"""The derived coefficients of a model as numbers, which the law and all engines use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NoReturn

import numpy as np
import sympy as sp

from lesde.derivation.rule import rule
from lesde.model.formula import EntryTable, PairFormula
from lesde.model.kernels import no_linear_drift
from lesde.model.lesde import LESDE
from lesde.model.noise import Noise
from lesde.model.quadrature import Panels, resolve
from lesde.model.transforms import Transform


@dataclass(frozen=True)
class _Shared:
    """The matrices H_l, σ_k per square root of time with the rule's factor, and the samples per class."""

    transform: Transform
    noise: Noise
    counts: np.ndarray

    @property
    def n_features(self) -> int:
        """p."""
        return self.noise.n_features


@dataclass(frozen=True)
class Coefficients(_Shared):
    """Tables of the derived drift and kicks, and the noise.

    ``entries`` is the kernel E_kl(t) as the user gave it, ``drift_table`` w_l E_kl(t), the factor of H_l X̄^l in the
    drift of class k, and ``kick_table`` E_kl(t), the factor of h H_l X_J in the step on sample J of class l.
    """

    depends_on_features: ClassVar[bool] = False

    entries: EntryTable
    drift_table: EntryTable
    kick_table: EntryTable

    def weights(self, times: np.ndarray) -> np.ndarray:
        """w_l E_kl at the times, shape (time, class, class), float64: the drift's class matrix."""
        return self._checked(self.drift_table, times)[..., self.drift_table.index]

    def kicks(self, times: np.ndarray) -> np.ndarray:
        """E_kl at the times, shape (time, class, class), float64: moved class first."""
        return self._checked(self.kick_table, times)[..., self.kick_table.index]

    def _checked(self, table: EntryTable, times: np.ndarray) -> np.ndarray:
        try:
            return table.distinct(times)
        except ValueError:
            self.entries(times)  # raises in terms of the user's formulas, where these are at fault
            raise

    def kernel_panels(
        self,
        times: np.ndarray,
        values: Mapping[str, float] | None = None,
        distinct: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> Panels:
        """Panels between successive times on which w_l E_kl is resolved.

        Free names have the given values, with which ``distinct`` evaluates the drift table's values.
        """
        places = self.drift_table.places(float(times[0]), float(times[-1]), values)
        evaluate = distinct or (lambda at: self._checked(self.drift_table, at))
        return resolve(lambda at: evaluate(at)[:, None], times, *places, lambda _, i: self.entry(i))

    def entry(self, position: int) -> str:
        """The kernel's value behind a distinct value of the drift, as the user knows it."""
        k, l = np.argwhere(self.drift_table.index == position)[0]
        value = self.entries.index[k, l]
        name = self.entries.names[value] if self.entries.names else "the kernel"
        return f"{name} = {self.entries.values[value]}"


def derive_coefficients(model: LESDE) -> Coefficients:
    """Apply the derived rule to each distinct entry of the model's kernel."""
    factors, N, entries = rule(), model.n_samples, model.entries
    kicks = entries.combine(np.zeros_like(entries.index), lambda E, _: factors.kick(E))
    columns = np.broadcast_to(model.counts, entries.index.shape)
    drift = entries.combine(columns, lambda E, n: factors.drift(sp.Rational(n, N), E))
    return Coefficients(model.transform, _noise(model), model.counts, entries, drift, kicks)


def _noise(model: LESDE) -> Noise:
    """The model's σ_k with the factor that the derived rule gives it, which is 1 for the published rule."""
    factors = rule()
    if factors.noise_between != 0:
        raise ValueError("the rule gives samples noise in common, which no engine has.")
    return model.noise_table.scaled(sp.sqrt(factors.noise))


@dataclass(frozen=True)
class FeatureCoefficients(_Shared):
    """The strength of two samples, the transform and the noise.

    ``strength`` is κ(X_i, X_J), the factor of h H_L X_J in the step of sample i on sample J. The drift of sample i is
    the average of κ H_L X_J over all samples J.
    """

    depends_on_features: ClassVar[bool] = True

    strength: PairFormula

    def weights(self, times: np.ndarray) -> NoReturn:
        """Not available: the drift is not a matrix of classes."""
        raise no_linear_drift("the class matrix of the drift")

    def kicks(self, times: np.ndarray) -> NoReturn:
        """Not available: the kicks are not a table of classes."""
        raise no_linear_drift("the table of kicks")


def derive_feature_coefficients(model: LESDE) -> FeatureCoefficients:
    """Apply the derived rule to the strength of a model with a feature kernel."""
    strength = PairFormula(rule().kick(model.kernel.formula.expression))  # type: ignore[attr-defined]
    return FeatureCoefficients(model.transform, _noise(model), model.counts, strength)
