"""Settings of studies: read from a JSON file, checked by pydantic, with every wrong one named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lesde.checks import shown

Confidence = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=10**4)]
Images = Annotated[int, Field(ge=2, le=10**5)]
Positive = Annotated[float, Field(gt=0, lt=float("inf"))]
Seed = Annotated[int, Field(ge=0)]


class StudySettings(BaseModel):
    """Settings that cannot be changed, or have other names."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DigitNetworks(StudySettings):
    """Networks on handwritten digits at several learning rates, all for the same time."""

    # Digits to distinguish, training images and recorded training images per class, hidden layers.
    classes: Annotated[tuple[int, ...], Field(min_length=4, max_length=10)] = (0, 1, 2, 3)
    train_per_class: Images = 100
    probe_per_class: Images = 40
    widths: Annotated[tuple[int, ...], Field(min_length=1)] = (32, 32)
    # Plain SGD with batch size 1; networks per learning rate; learning rate times iterations.
    learning_rates: Annotated[tuple[float, ...], Field(min_length=1)] = (0.005, 0.01, 0.02, 0.04)
    replicates: Annotated[int, Field(ge=2, le=10**4)] = 16
    total_time: Annotated[float, Field(gt=0)] = 50.0
    # Recordings, the initial state included; time from which the kernel is fitted and the model runs.
    saved_times: Annotated[int, Field(ge=8, le=10**4)] = 50
    model_start: Annotated[float, Field(ge=0)] = 2.0
    confidence: Confidence = 0.95
    seed: Seed = 0

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
    """Settings of ``lesde demo``. The defaults take under four minutes on two cores."""

    # Recordings that an interval of the fit spans; simulated trajectories from each network's start;
    # times of the analytic prediction.
    fit_every: Count = 2
    copies: Count = 4
    predicted_times: Annotated[int, Field(ge=2, le=10**4)] = 12


RATES = (0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128)


class RateConfig(DigitNetworks):
    """Settings of ``lesde rates``. The defaults take about two minutes."""

    widths: Annotated[tuple[int, ...], Field(min_length=1)] = (32,)
    learning_rates: Annotated[tuple[float, ...], Field(min_length=2)] = RATES
    # Half of the networks are fitted, half predicted.
    replicates: Annotated[int, Field(ge=8, le=10**4)] = 32
    total_time: Annotated[float, Field(gt=0)] = 32.0
    saved_times: Annotated[int, Field(ge=8, le=10**4)] = 24
    # Kernels fitted to resamples of the networks; noise of a sample.
    draws: Annotated[int, Field(ge=4, le=10**5)] = 40
    spread: Literal["covariance", "constant"] = "covariance"


Settings = TypeVar("Settings", bound=BaseModel)


def load_config(
    kind: type[Settings], path: Path | None = None, given: Mapping[str, Any] | None = None
) -> Settings:
    """Read settings from a JSON file; what it leaves out keeps its default.

    Parameters
    ----------
    kind : type
        Such as :class:`lesde.studies.DemoConfig`.
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
        except (OSError, ValueError, RecursionError) as error:
            why = "it is nested too deep" if isinstance(error, RecursionError) else error
            raise ValueError(f"--config must be a JSON file with settings; {path}: {why}") from None
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
