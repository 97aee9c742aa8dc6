"""Models: formulas, kernels, noise, transforms and LESDE itself. Plain immutable descriptions, without torch."""
