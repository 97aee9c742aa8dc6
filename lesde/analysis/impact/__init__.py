"""Elasticity measured by the effect of single SGD steps on the features of other samples."""
