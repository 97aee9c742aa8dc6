"""The coefficients of a model with a feature kernel: what the engines run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NoReturn

import numpy as np

from lesde.feature_kernel import no_linear_drift
from lesde.noise import Noise
from lesde.pair_formula import PairFormula
from lesde.transforms import Transform

__all__ = ["FeatureCoefficients"]


@dataclass(frozen=True)
class FeatureCoefficients:
    """The strength of two samples, the transform and the noise.

    Numbers of the drift, the kicks and the sampling noise come from
    :class:`lesde.simulation.interaction.Interaction`.

    Attributes
    ----------
    strength : PairFormula
        κ(X_i, X_J): the factor of h H_L X_J in the step of sample i on sample J.
    transform : Transform
        The matrices H_l, with their structure.
    noise : Noise
        σ_k of a sample, per square root of time, as a function of time.
    counts : ndarray of int, shape (class,)
        Samples a class.
    """

    depends_on_features: ClassVar[bool] = True

    strength: PairFormula
    transform: Transform
    noise: Noise
    counts: np.ndarray

    @property
    def n_features(self) -> int:
        """p."""
        return self.transform.n_features

    def weights(self, times: np.ndarray) -> NoReturn:
        """Not there: the drift is no matrix of classes."""
        raise no_linear_drift("the class matrix of the drift")

    def kicks(self, times: np.ndarray) -> NoReturn:
        """Not there: the kicks are no table of classes."""
        raise no_linear_drift("the table of kicks")
