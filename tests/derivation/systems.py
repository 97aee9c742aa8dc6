"""Models for the tests, and what follows from them by independent numerical routes."""

from __future__ import annotations

import numpy as np
import sympy as sp

from lesde import LESDE, ClassMatrix, Hierarchical, LabelNoise, TwoLevel

CLOSED = {
    "I constant": LESDE(TwoLevel(2, -0.5), 5, 2),
    "I in time": LESDE(TwoLevel("2/(1+t)", "-exp(-t)"), 4, 3),
    "I no primitive": LESDE(TwoLevel("1/(1+t)", "exp(-t**2)*cos(3*t)"), 3, 2),
    "I callables": LESDE(TwoLevel(lambda t: 2 / (1 + t), np.cos), 3, 2),
    "I hierarchical": LESDE(Hierarchical([0, 0, 1, 1, 2, 2], "2/(1+t)", 0.5, "-0.3*exp(-t)"), 6, 2),
    "I uneven groups": LESDE(Hierarchical([0, 0, 0, 1], 2, 0.5, -0.3), 4, 2),
    "I label noise": LESDE(LabelNoise(TwoLevel("2/(1+t)", -0.4), 0.3), 4, 2),
    "I unbalanced": LESDE(TwoLevel(2, -0.5), 3, 2, n_per_class=[10, 30, 50]),
    "I unbalanced one function": LESDE(
        TwoLevel("2/(1+t)", "-1/(1+t)"), 4, 2, n_per_class=[5, 5, 20, 9]
    ),
    "I matrix": LESDE(ClassMatrix([[1, 0.3, -0.2], [0.5, 2, 0.1], [-1, 0.7, 0.4]]), 3, 2),
    "L constant": LESDE(TwoLevel(2, -0.5), 5, 5, transform="logits"),
    "L two": LESDE(TwoLevel(2, -0.5), 2, 2, transform="logits"),
    "L in time": LESDE(TwoLevel("2/(1+t)", "-exp(-t)"), 4, 4, transform="logits"),
    "L unbalanced": LESDE(TwoLevel(2, -0.5), 3, 3, [10, 30, 50], transform="logits"),
    "L label noise": LESDE(LabelNoise(TwoLevel(2, "-1/(1+t)"), 0.3), 4, 4, transform="logits"),
    "L hierarchical": LESDE(Hierarchical([0, 0, 1, 1], 2, 0.5, -0.3), 4, 4, transform="logits"),
}

OPEN = {
    "I unbalanced in time": LESDE(TwoLevel("2/(1+t)", "cos(3*t)"), 3, 2, [10, 30, 50]),
    "I matrix in time": LESDE(
        ClassMatrix([[1, "t", -0.2], [0.5, "cos(t)", 0.1], [-1, 0.7, 0]]), 3, 2
    ),
    "L unbalanced in time": LESDE(
        TwoLevel("2/(1+t)", "cos(3*t)"), 3, 3, [10, 30, 50], transform="logits"
    ),
    "matrix": LESDE(
        TwoLevel("2/(1+t)", -0.5), 3, 2, transform=np.random.default_rng(1).normal(size=(3, 2, 2))
    ),
}


def logit_matrices(K: int) -> np.ndarray:
    """H_l of the L-model from its definition, (K, K, K)."""
    d = np.eye(K) - 1 / K
    return np.stack([np.outer(d[l], d[l]) / (d[l] @ d[l]) for l in range(K)])


def kernel_values(model: LESDE, t: float) -> np.ndarray:
    """E_kl(t), from what the user wrote rather than from the derivation."""
    return np.array(model.kernel.entries(model.n_classes)(np.array([t]))[0])


def generator(model: LESDE, t: float) -> np.ndarray:
    """The full (K·p)×(K·p) matrix with blocks w_l E_kl H_l."""
    K, p = model.n_classes, model.n_features
    if model.transform.kind == "logits":
        H = logit_matrices(K)
    elif model.transform.kind == "identity":
        H = np.stack([np.eye(p)] * K)
    else:
        H = model.transform.matrices
    w = np.array(model.counts) / np.sum(model.counts)
    E = kernel_values(model, t)
    return np.einsum("kl,l,lij->kilj", E, w, H).reshape(K * p, K * p)


def words(expression: sp.Expr, scalars: dict, matrices: dict) -> np.ndarray:
    """Numerical value of an expression in non-commuting symbols, by name of the symbol."""
    total = 0.0
    for term in sp.Add.make_args(sp.expand(expression)):
        commuting, word = term.args_cnc()
        value = float(sp.Mul(*commuting).subs(scalars))
        product: np.ndarray | None = None
        for symbol in word:
            base, power = symbol.as_base_exp()
            for _ in range(int(power)):
                factor = matrices[base.name]
                product = factor if product is None else product @ factor
        total = total + value * product
    return total
