"""Settings of studies: read from a JSON file, checked by pydantic, with every wrong one named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lesde.checks import shown

Confidence = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=10**4)]
Images = Annotated[int, Field(ge=2, le=10**5)]
Positive = Annotated[float, Field(gt=0, lt=float("inf"))]
Seed = Annotated[int, Field(ge=0)]


class StudySettings(BaseModel):
    """Settings that cannot be changed, or have other names."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
