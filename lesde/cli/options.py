"""The options that several commands share, and the model that they describe."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer


def opt(help: str, *names: str, **more: Any) -> Any:
    """An option with its help; named after its argument unless names are given."""
    return typer.Option(*names, help=help, **more)


def _model(help: str, *names: str, **more: Any) -> Any:
    return opt(help, *names, rich_help_panel="Model", **more)


STORE = "A Zarr store with paths, as `lesde simulate` writes it, or their statistics."
PathsArgument = Annotated[Path, typer.Argument(help=STORE)]
TABLE = "Also write it: the whole table to a .csv file, or all results to a .zarr store."
TableFile = Annotated[Path | None, opt(TABLE, "--out")]
REPLACE = "Replace what is there: a file, or a Zarr store that this package wrote."
Overwrite = Annotated[bool, opt(REPLACE, "--overwrite")]
RECORDED = "identity or logits; by default that of the model recorded in PATHS, else identity."
FitTransform = Annotated[str | None, opt(RECORDED)]
AllRows = Annotated[bool, opt("Print every row of the tables.", "--all")]
Confidence = Annotated[float, opt("Level of the intervals.")]
Device = Annotated[str | None, opt("cpu or cuda.")]
StudyFolder = Annotated[Path, opt("Folder for data, figures and report.")]
Config = Annotated[
    Path | None, opt("JSON file with settings in place of those that --show-config prints.")
]
Seed = Annotated[int | None, opt("Seed of all randomness.")]
ShowConfig = Annotated[bool, opt("Print the settings and exit.", "--show-config")]
Figure = Literal[
    "fan", "simplex", "simplex3d", "collapse", "probability", "elasticity", "animation"
]


ALPHA = "Within-class elasticity α: a number or a formula in t; left out, α(t) stays a symbol."
STRENGTH = (
    "In place of --alpha and --beta: elasticity as a formula in the two samples' squared distance r2, inner product g, "
    "cosine c, same-class indicator s, and t."
)
PARAMETER = "Value of a name in the formulas, such as a=2; the name alone leaves it open. Repeat for several."


def build_model(
    alpha: Annotated[str | None, _model(ALPHA)] = None,
    beta: Annotated[str | None, _model("Between-class elasticity β, like --alpha.")] = None,
    classes: Annotated[int, _model("Number of classes K.")] = 3,
    features: Annotated[int | None, _model("Feature dimensions p; by default K.")] = None,
    per_class: Annotated[str, _model("Samples per class: one integer, or K with commas.")] = "100",
    transform: Annotated[str, _model("identity (I-model) or logits (L-model).")] = "identity",
    noise: Annotated[str, _model("Diffusion σ: a number or a formula in t.")] = "0.1",
    label_noise: Annotated[float, _model("Probability of a wrong training label.")] = 0.0,
    strength: Annotated[str | None, _model(STRENGTH)] = None,
    parameters: Annotated[
        list[str] | None, _model(PARAMETER, "--parameter", metavar="NAME[=NUMBER]")
    ] = None,
) -> Any:
    """The LESDE that the options of a command describe."""
    import lesde

    values: dict[str, float | None] = {}
    for text in parameters or ():
        name, sign, number = text.partition("=")
        try:
            values[name.strip()] = float(number) if sign else None
        except ValueError:
            message = f"--parameter must be NAME=NUMBER, or NAME to leave it open; got {text!r}."
            raise ValueError(message) from None
    if strength is not None and (alpha is not None or beta is not None or label_noise):
        raise ValueError(
            "--strength takes the place of --alpha, --beta and --label-noise; give one or the other."
        )
    try:
        counts = [int(part) for part in per_class.split(",")]
    except ValueError:
        message = f"--per-class must be an integer or {classes} of them; got {per_class!r}."
        raise ValueError(message) from None
    kernel: Any = lesde.TwoLevel(alpha, beta, values or None)
    if strength is not None:
        kernel = lesde.FeatureKernel(strength, values or None)
    if label_noise:
        kernel = lesde.LabelNoise(kernel, label_noise)
    return lesde.LESDE(
        kernel,
        n_classes=classes,
        n_features=classes if features is None else features,
        n_per_class=counts[0] if len(counts) == 1 else counts,
        transform=transform,
        noise=noise,
        parameters=values or None,
    )


def takes_model(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `build_model` in place of its argument ``model``."""
    shared, own = (
        dict(inspect.signature(each, eval_str=True).parameters) for each in (build_model, command)
    )
    del own["model"]

    @functools.wraps(command)
    def whole(**given: Any) -> None:
        model = build_model(**{name: given.pop(name) for name in shared})
        command(model=model, **given)

    every = [p.replace(kind=p.KEYWORD_ONLY) for p in (*own.values(), *shared.values())]
    whole.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    whole.__annotations__ = {p.name: p.annotation for p in every}
    return whole
