"""Laws and paths as torch tensors, with gradients to kernel parameters and initial means."""

from lesde.differentiable.law import TensorLaw, tensor_law
from lesde.differentiable.paths import TensorPaths, tensor_paths

__all__ = ["TensorLaw", "TensorPaths", "tensor_law", "tensor_paths"]
