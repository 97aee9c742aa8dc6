"""An elasticity kernel that sees the features: strength as a function of the two samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lesde.entries import EntryTable
from lesde.formula import Formula
from lesde.kernels import Kernel, Parameters, TwoLevel
from lesde.pair_formula import PairFormula, parse_pair_formula

__all__ = ["FeatureKernel", "no_linear_drift"]


class FeatureKernel(Kernel):
    """Strength κ(X_i, X_J) with which a step on sample J moves sample i, from their features.

    The drift of such a model is not linear in the features, so it has no exact law: it is simulated
    with the engines "torchsde" and "sgd". A step costs O(N² p), in tiles of bounded size. A formula in
    s and t only is a class kernel, and costs what that costs.

    Parameters
    ----------
    strength : number, str or sympy.Expr
        A formula in

        - ``r2``, the squared distance ‖X_i − X_J‖²,
        - ``g``, the inner product ⟨X_i, X_J⟩,
        - ``c``, the cosine g/(‖X_i‖‖X_J‖), 0 where a norm is 0,
        - ``s``, 1 where both samples are of one class and 0 where not,
        - ``t``, the time.
    parameters : mapping, optional
        Values of named parameters in the formula; None leaves a name free, to derive with and to set
        later by ``model.substitute``.

    Raises
    ------
    TypeError, ValueError
        For what is no such formula; names that are not known are told with those that are.

    Notes
    -----
    Every drawn sample also moves itself, with r2 = 0 and s = 1, so the formula must be finite there.

    Examples
    --------
    >>> FeatureKernel("s*a*exp(-r2/8) - (1-s)*exp(-r2/2)/(1+t)", parameters={"a": 2})
    FeatureKernel(strength=2*s*exp(-r2/8) - (1 - s)*exp(-r2/2)/(t + 1))
    """

    depends_on_features = True

    def __init__(self, strength: Any, parameters: Parameters = None):
        self.formula: PairFormula = parse_pair_formula("strength", strength, parameters)
        self.free_names = tuple(self.formula.unresolved())

    @property
    def class_kernel(self) -> TwoLevel | None:
        """The class kernel that it equals where the formula has only s and t, else None."""
        if not self.formula.is_class_only:
            return None
        return TwoLevel(Formula(self.formula.at(True)), Formula(self.formula.at(False)))

    def with_parameters(self, values: Mapping[str, float]) -> FeatureKernel:
        return FeatureKernel(self.formula.expression, values)

    def entries(self, n_classes: int) -> EntryTable:
        if self.class_kernel is None:
            raise TypeError(
                f"FeatureKernel has no table of strengths between classes: strength = "
                f"{self.formula.expression} depends on the features ({', '.join(sorted(self.formula.uses))})."
            )
        return self.class_kernel.entries(n_classes)

    def _describe(self) -> dict[str, Any]:
        return {"strength": str(self.formula.expression)}


def no_linear_drift(what: str) -> ValueError:
    """The error for what needs a drift that is linear in the features."""
    return ValueError(
        f"{what} needs a kernel of classes and time; this model's FeatureKernel depends on the features, "
        f"so its drift is not linear. Simulate it with lesde.simulate(model, ..., engine='torchsde') or "
        f"engine='sgd'."
    )
