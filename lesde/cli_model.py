"""The model that the command line's options describe."""

from __future__ import annotations

from typing import Any

__all__ = ["build_model"]


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
) -> Any:
    """The LESDE that the options of a command describe."""
    import lesde

    try:
        counts = [int(part) for part in per_class.split(",")]
    except ValueError:
        raise ValueError(
            f"--per-class must be an integer or {classes} of them; got {per_class!r}."
        ) from None
    kernel: Any = lesde.TwoLevel(alpha, beta)
    if strength is not None:
        if alpha is not None or beta is not None or label_noise:
            raise ValueError(
                "--strength takes the place of --alpha, --beta and --label-noise; give one or the other."
            )
        kernel = lesde.FeatureKernel(strength)
    if label_noise:
        kernel = lesde.LabelNoise(kernel, label_noise)
    return lesde.LESDE(
        kernel,
        n_classes=classes,
        n_features=features or classes,
        n_per_class=counts[0] if len(counts) == 1 else counts,
        transform=transform,
        noise=_number_or_text(noise),
    )


def _number_or_text(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
