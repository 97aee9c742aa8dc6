from lesde.derivation.core import Derivation

__all__ = ["Derivation"]
