"""Models: formulas, kernels, noise, transforms and LESDE itself. They are plain immutable descriptions, without torch."""
