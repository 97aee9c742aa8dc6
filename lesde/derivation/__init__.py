"""From the microscopic rule to drift, diffusion, closed forms and rates: `derive`."""

from typing import Any

from lesde.checks import check_instance
from lesde.derivation.derivation import Derivation, FeatureDerivation
from lesde.model.lesde import LESDE

__all__ = ["Derivation", "FeatureDerivation", "derive"]


def derive(model: LESDE) -> Any:
    """Return the drift, diffusion, modes, closed forms and rates of a model.

    A model with a :class:`lesde.FeatureKernel` gives a :class:`FeatureDerivation`, which has the same
    names as a :class:`Derivation`.

    >>> import lesde
    >>> model = lesde.LESDE(lesde.TwoLevel("2/(1+t)", -0.5), n_classes=3, n_features=3)
    >>> lesde.derive(model).critical_constant
    3/2
    """
    check_instance("model", model, LESDE, "a lesde.LESDE")
    # A model never changes, so it is derived once.
    known = vars(model)
    if "_derivation" not in known:
        kind = FeatureDerivation if model.kernel.depends_on_features else Derivation
        known["_derivation"] = kind(model)
    return known["_derivation"]
