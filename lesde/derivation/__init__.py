from lesde.derivation.core import Derivation
from lesde.derivation.feature_derivation import FeatureDerivation

__all__ = ["Derivation", "FeatureDerivation"]
