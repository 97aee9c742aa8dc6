"""The model that the command line's options describe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["build_model"]


# --------------------------------------------------------------------------------------------------
# Options that several commands of the command line share.

_MODEL = "Model"
Alpha = Annotated[
    str | None,
    typer.Option(
        help="Within-class elasticity α: a number or a formula in t; left out, α(t) stays a symbol.",
        rich_help_panel=_MODEL,
    ),
]
Beta = Annotated[
    str | None,
    typer.Option(help="Between-class elasticity β, like --alpha.", rich_help_panel=_MODEL),
]
Classes = Annotated[int, typer.Option(help="Number of classes K.", rich_help_panel=_MODEL)]
Features = Annotated[
    int | None,
    typer.Option(help="Feature dimensions p; by default K.", rich_help_panel=_MODEL),
]
PerClass = Annotated[
    str,
    typer.Option(help="Samples a class: one integer, or K with commas.", rich_help_panel=_MODEL),
]
TransformName = Annotated[
    str,
    typer.Option(help="identity (I-model) or logits (L-model).", rich_help_panel=_MODEL),
]
Strength = Annotated[
    str | None,
    typer.Option(
        help="In place of --alpha and --beta: elasticity as a formula in the two samples' squared "
        "distance r2, inner product g, cosine c, same-class indicator s, and t.",
        rich_help_panel=_MODEL,
    ),
]
Noise = Annotated[
    str,
    typer.Option(help="Diffusion σ: a number or a formula in t.", rich_help_panel=_MODEL),
]
LabelNoise = Annotated[
    float, typer.Option(help="Probability of a wrong training label.", rich_help_panel=_MODEL)
]
ParameterValues = Annotated[
    list[str] | None,
    typer.Option(
        "--parameter",
        metavar="NAME[=NUMBER]",
        help="Value of a name in the formulas, such as a=2; the name alone leaves it open. Repeat for "
        "several.",
        rich_help_panel=_MODEL,
    ),
]
LearningRates = Annotated[
    list[float] | None,
    typer.Option(help="Learning rate h; repeat for several. Selects the sgd engine."),
]
Method = Annotated[str, typer.Option(help="Of the torchsde engine: euler, milstein or srk.")]
SDE = Annotated[
    str,
    typer.Option(
        help="plain, or with SGD's sampling noise at the learning rate: sampling, modified."
    ),
]
MemoryLimit = Annotated[str | None, typer.Option(help='What a run may take, such as "500 MB".')]
AllRows = Annotated[bool, typer.Option("--all", help="Print every row of the tables.")]
TableFile = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Also write it: the whole table to a .csv file, or all results to a .zarr store.",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace what is there: a file, or a Zarr store that this package wrote.",
    ),
]
FitTransform = Annotated[
    str | None,
    typer.Option(
        help="identity or logits; by default that of the model recorded in PATHS, else identity."
    ),
]
PathsArgument = Annotated[
    Path,
    typer.Argument(
        help="A Zarr store with paths, as `lesde simulate` writes it, or their statistics."
    ),
]


class Figure(StrEnum):
    """Figures that the command line draws from a dataset of paths."""

    fan = "fan"
    simplex = "simplex"
    simplex3d = "simplex3d"
    collapse = "collapse"
    probability = "probability"
    elasticity = "elasticity"
    animation = "animation"


# --------------------------------------------------------------------------------------------------


def build_model(
    alpha: str | None,
    beta: str | None,
    classes: int,
    features: int | None,
    per_class: str,
    transform: str,
    noise: str,
    label_noise: float,
    strength: str | None,
    parameter: Sequence[str] | None = None,
    *,
    needs_values: bool = False,
) -> Any:
    """The LESDE that the options of a command describe.

    With ``needs_values`` a kernel or name that is left open is refused.
    """
    import lesde

    parameters = _parameters(parameter or (), (alpha, beta, strength, noise))
    if needs_values:
        _check_values(alpha, beta, strength, parameters)

    try:
        counts = [int(part) for part in per_class.split(",")]
    except ValueError:
        raise ValueError(
            f"--per-class must be an integer or {classes} of them; got {per_class!r}."
        ) from None
    kernel: Any = lesde.TwoLevel(alpha, beta, parameters)
    if strength is not None:
        if alpha is not None or beta is not None or label_noise:
            raise ValueError(
                "--strength takes the place of --alpha, --beta and --label-noise; give one or the other."
            )
        kernel = lesde.FeatureKernel(strength, parameters)
    if label_noise:
        kernel = lesde.LabelNoise(kernel, label_noise)
    return lesde.LESDE(
        kernel,
        n_classes=classes,
        n_features=classes if features is None else features,
        n_per_class=counts[0] if len(counts) == 1 else counts,
        transform=transform,
        noise=_number_or_text(noise),
        parameters=parameters,
    )


def _parameters(
    given: Sequence[str], formulas: Sequence[str | None]
) -> dict[str, float | None] | None:
    """Values of names in formulas, None for those left open."""
    used = set(re.findall(r"[^\W\d]\w*", " ".join(text for text in formulas if text)))
    values: dict[str, float | None] = {}
    for text in given:
        name, sign, number = (part.strip() for part in text.partition("="))
        try:
            value = float(number) if sign else None
        except ValueError:
            value, name = None, ""
        if not name.isidentifier():
            raise ValueError(
                f"--parameter must be NAME=NUMBER, or NAME to leave it open; got {text!r}."
            )
        if name in values:
            raise ValueError(f"--parameter {name} is given twice; give it once.")
        if name not in used:
            raise ValueError(
                f"--parameter {name} is in none of the formulas of the model; leave it out, or use it."
            )
        values[name] = value
    return values or None


def _check_values(
    alpha: str | None,
    beta: str | None,
    strength: str | None,
    parameters: dict[str, float | None] | None,
) -> None:
    missing = [f"--{name}" for name, value in (("alpha", alpha), ("beta", beta)) if value is None]
    if missing and strength is None:
        raise ValueError(
            f"{' and '.join(missing)} must be given to simulate: a number or a formula in t. (Or give "
            f"--strength, a formula in the features, in place of both.)"
        )
    free = [name for name, value in (parameters or {}).items() if value is None]
    if free:
        raise ValueError(
            f"--parameter {free[0]} must have a value to simulate; give --parameter {free[0]}=NUMBER."
        )


def _number_or_text(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
