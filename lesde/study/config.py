"""Settings of the studies on digits, and how settings are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from lesde.checks import shown

__all__ = [
    "DemoConfig",
    "DigitNetworks",
    "RateConfig",
    "load_config",
    "read_settings",
    "validated",
]

Settings = TypeVar("Settings", bound=BaseModel)


class DigitNetworks(BaseModel):
    """Networks on handwritten digits at several learning rates, all for the same time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: tuple[int, ...] = Field(
        (0, 1, 2, 3), min_length=4, max_length=10, description="digits to tell apart"
    )
    train_per_class: int = Field(100, ge=2, le=10**5, description="training images a class")
    probe_per_class: int = Field(40, ge=2, le=10**5, description="recorded training images a class")
    widths: tuple[int, ...] = Field((32, 32), min_length=1, description="hidden layers")
    learning_rates: tuple[float, ...] = Field(
        (0.005, 0.01, 0.02, 0.04), min_length=1, description="of plain SGD, batch size 1"
    )
    replicates: int = Field(16, ge=2, le=10**4, description="networks a learning rate")
    total_time: float = Field(50.0, gt=0, description="learning rate times iterations")
    saved_times: int = Field(
        50, ge=8, le=10**4, description="recordings, the initial state included"
    )
    model_start: float = Field(
        2.0, ge=0, description="time from which the kernel is fitted and the model runs"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="level of all intervals")
    seed: int = Field(0, ge=0, description="of all randomness")

    @field_validator("classes")
    @classmethod
    def _digits(cls, classes: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(classes)) < len(classes) or not set(classes) <= set(range(10)):
            raise ValueError("must be different digits from 0 to 9")
        return classes

    @field_validator("learning_rates")
    @classmethod
    def _rates(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(rates)) < len(rates) or not all(0 < rate < float("inf") for rate in rates):
            raise ValueError("must be different positive numbers")
        return rates

    @model_validator(mode="after")
    def _long_enough(self) -> DigitNetworks:
        if self.model_start >= self.total_time:
            raise ValueError("model_start must be before total_time")
        if self.total_time - self.model_start < 8 * max(self.learning_rates):
            raise ValueError(
                "total_time must leave at least 8 iterations of the largest learning rate after "
                "model_start"
            )
        return self


class DemoConfig(DigitNetworks):
    """What ``lesde demo`` does. The defaults take under four minutes on two cores."""

    fit_every: int = Field(2, ge=1, le=10**4, description="recordings an interval of the fit spans")
    copies: int = Field(
        4, ge=1, le=10**4, description="simulated trajectories from each network's start"
    )
    predicted_times: int = Field(12, ge=2, le=10**4, description="times of the analytic prediction")


class RateConfig(DigitNetworks):
    """What ``lesde rates`` does. The defaults take about two minutes."""

    widths: tuple[int, ...] = Field((32,), min_length=1, description="hidden layers")
    learning_rates: tuple[float, ...] = Field(
        (0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128),
        min_length=2,
        description="of plain SGD, batch size 1",
    )
    replicates: int = Field(
        32, ge=8, le=10**4, description="networks a learning rate: half are fitted, half predicted"
    )
    total_time: float = Field(32.0, gt=0, description="learning rate times iterations")
    saved_times: int = Field(
        24, ge=8, le=10**4, description="recordings, the initial state included"
    )
    draws: int = Field(
        40, ge=4, le=10**5, description="kernels fitted to resamples of the networks"
    )
    spread: str = Field("covariance", description="noise of a sample: covariance or constant")

    @field_validator("spread")
    @classmethod
    def _known(cls, spread: str) -> str:
        if spread not in ("covariance", "constant"):
            raise ValueError("must be covariance or constant")
        return spread


def load_config(
    kind: type[Settings], path: Path | None = None, given: Mapping[str, Any] | None = None
) -> Settings:
    """Read settings from a JSON file; what it leaves out keeps its default.

    Parameters
    ----------
    kind : type
        Such as :class:`DemoConfig`.
    path : Path, optional
    given : mapping, optional
        Settings in place of those of the file; those that are None are left out.

    Raises
    ------
    ValueError
        Naming the setting, what was given and what is allowed.
    """
    return validated(kind, read_settings(path, given))


def read_settings(path: Path | None, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Settings of a JSON file, and in their place those ``given`` that are not None."""
    settings: Any = {}
    if path is not None:
        try:
            settings = json.loads(Path(path).read_text(encoding="utf-8"))
        except RecursionError:
            raise ValueError(
                f"--config must be a JSON file with settings; {path} is nested too deep to be one."
            ) from None
        except (OSError, ValueError) as error:
            raise ValueError(
                f"--config must be a JSON file with settings; {path}: {error}"
            ) from None
        if not isinstance(settings, dict):
            raise ValueError(
                f"--config must hold a JSON object of settings; {path} holds {type(settings).__name__}."
            )
    return settings | {name: value for name, value in (given or {}).items() if value is not None}


def validated(kind: type[Settings], settings: Mapping[str, Any]) -> Settings:
    """Settings of a kind; an error names each that is wrong, and all that there are."""
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            where = ".".join(map(str, item["loc"]))
            got = f", got {shown(item['input'])}" if where else ""
            lines.append(f"{where or 'together'}: {item['msg'].removeprefix('Value error, ')}{got}")
        known = ", ".join(kind.model_fields)
        raise ValueError(f"settings: {'; '.join(lines)}. Known settings: {known}.") from None
