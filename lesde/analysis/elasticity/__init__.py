"""Elasticity estimated from trajectories of class means: fits, tail indices, fitted kernels."""
