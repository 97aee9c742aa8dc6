"""Free names: leaving them open, giving them values, and what is said of names that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
import torch

import lesde
from lesde import LESDE, ClassMatrix, Hierarchical, LabelNoise, TwoLevel
from lesde.laws.values import BoundTable, read_parameters
from lesde.model.formula import EntryTable, parse_formula

FREE = {"a": None, "b": None}
A, P = sp.Symbol("a"), sp.Symbol("p")


@lesde.kernel
def chain(k, l, t):
    return A / (1 + t) if k == l else -sp.Symbol("b") / (1 + abs(k - l))


KERNELS = {
    "TwoLevel": (TwoLevel("a/(1+t)", "b", FREE), TwoLevel("2/(1+t)", "-0.5")),
    "symbols": (TwoLevel(A / (1 + sp.Symbol("t")), sp.Symbol("b")), TwoLevel("2/(1+t)", "-0.5")),
    "ClassMatrix": (
        ClassMatrix([["a", "b*t"], [1, "a*b"]], FREE),
        ClassMatrix([[2, "-0.5*t"], [1, -1]]),
    ),
    "Hierarchical": (
        Hierarchical([0, 1], "a", 1, "b*t", FREE),
        Hierarchical([0, 1], 2, 1, "-0.5*t"),
    ),
    "LabelNoise": (
        LabelNoise(TwoLevel("a", "b", FREE), P),
        LabelNoise(TwoLevel(2, -0.5), 0.25),
    ),
    "function": (
        chain,
        lesde.kernel(lambda k, l, t: 2 / (1 + t) if k == l else 0.5 / (1 + abs(k - l))),
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_substitute_gives_the_model_with_the_numbers(name):
    kernel, written = KERNELS[name]
    model = LESDE(kernel, 2, 2)
    values = {"a": 2, "b": -0.5} | ({"p": 0.25} if name == "LabelNoise" else {})
    assert model.free_parameters == tuple(sorted(values))
    assert len(lesde.derive(model).drift) == 2  # derivable with open names
    filled = model.substitute(**values)
    assert filled.free_parameters == ()
    times = np.array([0.0, 0.7])
    expected = written.entries(2)(times)
    np.testing.assert_allclose(filled.entries(times), expected, rtol=1e-14)
    part = model.substitute(a=2)
    assert "a" not in part.free_parameters
    assert "b" in part.free_parameters
    assert model.free_parameters == tuple(sorted(values))


def test_names_of_the_noise():
    model = LESDE(
        TwoLevel("a", 0, {"a": None}), 2, 2, noise="s*exp(-d*t)", parameters={"s": None, "d": 2}
    )
    assert model.free_parameters == ("a", "s")
    filled = model.substitute(a=1, s=0.5)
    np.testing.assert_allclose(
        filled.noise_factor(1.0)[0], 0.5 * np.exp(-2) * np.eye(2), rtol=1e-15
    )
    with pytest.raises(ValueError, match=r"noise must not be negative.* -1 "):
        LESDE(TwoLevel(1, 0), 2, 2, noise="s", parameters={"s": None}).substitute(s=-1.0)


def test_law_takes_parameters_without_gradients_too():
    model = LESDE(KERNELS["TwoLevel"][0], 2, 2)
    written = LESDE(KERNELS["TwoLevel"][1], 2, 2)
    law = lesde.law(model, [0, 1], np.eye(2), parameters={"a": 2, "b": -0.5})
    np.testing.assert_array_equal(law["mean"], lesde.law(written, [0, 1], np.eye(2))["mean"])


def test_what_does_not_fit_is_told():
    model = LESDE(KERNELS["TwoLevel"][0], 2, 2)
    with pytest.raises(TypeError, match="free names of the model, a, b; got c"):
        model.substitute(c=1)
    with pytest.raises(ValueError, match=r"alpha = .* has no value for a.*parameters"):
        lesde.law(model, [0, 1])
    with pytest.raises(TypeError, match=r"parameters\['a'\] must be a real number; got 'x'"):
        model.substitute(a="x")
    with pytest.raises(ValueError, match=r"alpha = .*1/a.* must be real and finite"):
        LESDE(TwoLevel("1/a", 0, {"a": None}), 2, 2).substitute(a=0)
    with pytest.raises(ValueError, match="p must be a finite number"):
        LESDE(LabelNoise(TwoLevel(1, 0), P), 2, 2).substitute(p=1.5)
    with pytest.raises(ValueError, match=r"unknown symbol 'c'.*or None there to leave it free"):
        TwoLevel("c", 0, {"a": None})


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        (None, ValueError, "free names a, b, and no value for a, b; give parameters"),
        ({"a": 1.0}, ValueError, "no value for b"),
        ({"a": 1.0, "b": 2, "c": 3}, ValueError, "parameters has c, which the model does not"),
        ([1, 2], TypeError, r"must be a mapping of names .*got \[1, 2\]"),
        ({"a": "1", "b": 0}, TypeError, r"parameters\['a'\] must be a number.*got '1'"),
        ({"a": True, "b": 0}, TypeError, r"parameters\['a'\]"),
        ({"a": np.nan, "b": 0}, ValueError, r"parameters\['a'\] must be finite; got nan"),
        ({"a": torch.ones(2), "b": 0}, ValueError, r"0-d tensor; got a tensor of shape \(2,\)"),
        ({"a": torch.tensor(1j), "b": 0}, ValueError, "real 0-d tensor"),
    ],
)
def test_bad_parameters(parameters, error, message):
    with pytest.raises(error, match=message):
        read_parameters(LESDE(KERNELS["TwoLevel"][0], 2, 2), parameters)


def test_tensors_stay_in_their_graph():
    a = torch.tensor(2.0, requires_grad=True)  # float32
    values = read_parameters(LESDE(KERNELS["TwoLevel"][0], 2, 2), {"a": 3 * a, "b": 1})
    assert values["a"].dtype == torch.float64
    values["a"].backward()
    assert float(a.grad) == 3.0


def test_tables_keep_their_index_and_name_bad_values():
    times = np.array([0.3, 0.7, 1.0, 2.5])
    formulas = {
        "alpha": parse_formula("alpha", "a*t", FREE),
        "beta": parse_formula("beta", "log(b + t)", FREE),
    }
    table = EntryTable.from_formulas(formulas, np.array([[0, 1], [1, 0]]))
    values = {
        "a": torch.tensor(0.6, dtype=torch.float64),
        "b": torch.tensor(-1.3, dtype=torch.float64),
    }
    found = BoundTable(table, values, "kernel")(times[3:])
    expected = np.log(1.2)
    np.testing.assert_allclose(found.numpy(), [[[1.5, expected], [expected, 1.5]]], rtol=1e-14)
    with pytest.raises(
        ValueError,
        match=r"beta = log\(b \+ t\) is not a finite real number at t = 0.3 for b = -1.3",
    ):
        BoundTable(table, values, "kernel")(times)
