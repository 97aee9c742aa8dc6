"""Options that several commands of the command line share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

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
