"""The options that several commands share, and the model that they describe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

__all__ = ["build_model"]


def _model(help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Model", **more)


Alpha = Annotated[
    str | None,
    _model("Within-class elasticity α: a number or a formula in t; left out, α(t) stays a symbol."),
]
Beta = Annotated[str | None, _model("Between-class elasticity β, like --alpha.")]
Classes = Annotated[int, _model("Number of classes K.")]
Features = Annotated[int | None, _model("Feature dimensions p; by default K.")]
PerClass = Annotated[str, _model("Samples per class: one integer, or K with commas.")]
TransformName = Annotated[str, _model("identity (I-model) or logits (L-model).")]
Strength = Annotated[
    str | None,
    _model(
        "In place of --alpha and --beta: elasticity as a formula in the two samples' squared distance r2, "
        "inner product g, cosine c, same-class indicator s, and t."
    ),
]
Noise = Annotated[str, _model("Diffusion σ: a number or a formula in t.")]
LabelNoise = Annotated[float, _model("Probability of a wrong training label.")]
Parameters = Annotated[
    list[str] | None,
    _model(
        "Value of a name in the formulas, such as a=2; the name alone leaves it open. Repeat for several.",
        "--parameter",
        metavar="NAME[=NUMBER]",
    ),
]
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
Confidence = Annotated[float, typer.Option(help="Level of the intervals.")]
PathsArgument = Annotated[
    Path,
    typer.Argument(
        help="A Zarr store with paths, as `lesde simulate` writes it, or their statistics."
    ),
]


Figure = Literal[
    "fan", "simplex", "simplex3d", "collapse", "probability", "elasticity", "animation"
]


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
    parameters: Sequence[str] | None,
    *,
    needs_values: bool = False,
) -> Any:
    """The LESDE that the options of a command describe.

    With ``needs_values`` a kernel or name that is left open is refused.
    """
    import lesde

    values = _values(parameters or (), (alpha, beta, strength, noise))
    if strength is not None and (alpha is not None or beta is not None or label_noise):
        raise ValueError(
            "--strength takes the place of --alpha, --beta and --label-noise; give one or the other."
        )
    if needs_values:
        given = {"--alpha": alpha, "--beta": beta}
        missing = [name for name, text in given.items() if text is None]
        if missing and strength is None:
            raise ValueError(
                f"{' and '.join(missing)} must be given to simulate: a number or a formula in t. (Or give "
                f"--strength, a formula in the features, in place of both.)"
            )
        for name in (name for name, value in (values or {}).items() if value is None):
            raise ValueError(
                f"--parameter {name} must have a value to simulate; give --parameter {name}=NUMBER."
            )
    try:
        counts = [int(part) for part in per_class.split(",")]
    except ValueError:
        raise ValueError(
            f"--per-class must be an integer or {classes} of them; got {per_class!r}."
        ) from None
    kernel: Any = lesde.TwoLevel(alpha, beta, values)
    if strength is not None:
        kernel = lesde.FeatureKernel(strength, values)
    if label_noise:
        kernel = lesde.LabelNoise(kernel, label_noise)
    return lesde.LESDE(
        kernel,
        n_classes=classes,
        n_features=classes if features is None else features,
        n_per_class=counts[0] if len(counts) == 1 else counts,
        transform=transform,
        noise=noise,
        parameters=values,
    )


def _values(given: Sequence[str], formulas: Sequence[str | None]) -> dict[str, float | None] | None:
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
