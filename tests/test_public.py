"""The public names, and that importing the package stays light."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lesde

HEAVY = ("torch", "torchsde", "matplotlib", "sympy", "sklearn", "xarray", "scipy")


def in_fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_lazy():
    code = f"import sys, lesde; lesde.__version__; dir(lesde); print([m for m in {HEAVY} if m in sys.modules])"
    assert in_fresh_python(code) == "[]"


def test_models_and_derivations_need_no_torch_and_laws_no_torchsde():
    code = (
        "import sys, lesde\n"
        "model = lesde.LESDE(lesde.TwoLevel(1, 0), 2, 2)\n"
        "lesde.derive(model).text()\n"
        "first = [m for m in ('torch', 'matplotlib', 'sklearn') if m in sys.modules]\n"
        "lesde.law(model, [0, 1])\n"
        "print(first + [m for m in ('torchsde', 'matplotlib', 'sklearn') if m in sys.modules])"
    )
    assert in_fresh_python(code) == "[]"


def test_rooms_work_at_once():
    code = (
        "import lesde\n"
        "print(lesde.networks.mlp.__name__, lesde.analysis.separation_function.__name__, "
        "lesde.studies.load_config.__name__)"
    )
    assert in_fresh_python(code) == "mlp separation_function load_config"


@pytest.mark.parametrize("name", lesde.__all__)
def test_every_public_name_resolves(name):
    value = getattr(lesde, name)
    assert value is getattr(lesde, name)
    if name not in ("__version__", "analysis", "networks", "plot", "studies"):
        assert callable(value)
        assert value.__doc__


def test_contract_names_are_public():
    contract = {
        "LESDE", "TwoLevel", "ClassMatrix", "Hierarchical", "LabelNoise", "kernel", "simulate", "Diverged",
        "separation_probability", "predict_separation", "neural_collapse", "convergence",
        "fit_elasticity", "plot", "derive", "law", "moments", "from_arrays", "Exact", "TorchSDE", "SGD",
        "analysis", "networks", "studies",
    }  # fmt: skip
    assert contract <= set(lesde.__all__)
    assert sorted(dir(lesde)) == sorted(lesde.__all__)


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'lesde' has no attribute 'nothing'"):
        _ = lesde.nothing


def test_simulate_is_the_function_even_when_its_package_is_imported_first():
    code = "from lesde.simulation import simulate\nimport lesde\nprint(lesde.simulate is simulate)"
    assert in_fresh_python(code) == "True"
