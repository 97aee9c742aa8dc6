"""Models: formulas, kernels, noise, transforms and LESDE itself, all plain immutable descriptions without torch."""
