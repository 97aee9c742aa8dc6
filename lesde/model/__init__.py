"""Models: formulas, kernels, noise, transforms and LESDE itself, plain immutable descriptions that load no torch."""
