"""Elasticity measured by what single SGD steps do to the features of others."""
