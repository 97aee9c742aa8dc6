"""The folder of a study, with one set of settings."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from pydantic import BaseModel

from lesde import __version__
from lesde.files import REMEDY, Target, read, write


class StudyFolder:
    """A folder for the data, figures and report of one study, such as ``kind="demo"``: a new one, or its own.

    The settings are kept in ``file``, except those in ``free``, which may differ between runs as they do not affect what
    is trained.
    """

    def __init__(
        self,
        path: str | Path,
        kind: str,
        settings: BaseModel,
        free: Sequence[str] = (),
        file: str = "config.json",
    ):
        self.path, self.kind, self.chosen = Path(path), kind, settings
        self.data, self.figures = self.path / "data", self.path / "figures"
        self.study = settings.model_dump_json(exclude=set(free))
        """The settings that decide what is trained, as every store holds them."""
        self.settings = json.dumps(settings.model_dump(mode="json") | {"lesde": __version__})
        """All of them, and the version: results with these need not be computed again."""
        self._settings_file = self.path / file

    def begun(self) -> StudyFolder:
        """Begin or continue the study: ValueError where the folder has other settings, or is of no study."""
        file, here = self._settings_file, json.loads(self.study)
        Target(file, "--out", overwrite=True).check()
        if file.exists():
            try:
                different = _difference(dict(json.loads(file.read_text(encoding="utf-8"))), here)
            except (ValueError, TypeError):
                different = "the file is damaged"
            if different:
                raise ValueError(
                    f"--out: {self.path} holds a study with other settings ({different}; see {file.name}); give another "
                    f"folder or remove it."
                )
        else:
            for part in (self.path / "report.md", self.data, self.figures):
                if part.is_file() or any(part.glob("*")):
                    raise ValueError(
                        f"--out: {part} is there already, and {file} is not, which lesde {self.kind} writes first; "
                        f"give another folder."
                    )
            self.put_text(file, json.dumps(here, indent=2))
        return self

    def put(self, path: Path, write: Callable[[Path], object]) -> None:
        """Write a file by a function that is given a name, in place of an older one."""
        Target(path, "--out", overwrite=True).put(write)

    def put_text(self, path: Path, text: str) -> None:
        """Write a text file."""
        self.put(path, lambda new: new.write_text(text, encoding="utf-8"))

    def put_store(self, dataset: xr.Dataset, path: Path) -> None:
        """Write a Zarr store, which holds the settings it was computed with."""
        write(dataset.assign_attrs(lesde_settings=self.settings, lesde_study=self.study), path)


def _difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    """The settings that differ, as text; empty if none does."""
    names = dict.fromkeys([*here, *there])
    return ", ".join(
        f"{n} = {there.get(n)}, not {here.get(n)}" for n in names if there.get(n) != here.get(n)
    )


def read_whole(path: str | os.PathLike[str], study: str) -> xr.Dataset:
    """Read a store of a study with these settings, none of whose numbers may be missing."""
    try:
        dataset = read(path)
    except ValueError as error:
        raise damaged_result(path, str(error).removesuffix(f" {REMEDY}")) from None
    if any(v.dtype.kind == "f" and bool(v.isnull().any()) for v in dataset.values()):
        raise damaged_result(path)
    different = _difference(json.loads(dataset.attrs.get("lesde_study", "{}")), json.loads(study))
    if different:
        raise ValueError(
            f"--out: {os.fspath(path)} was made with other settings ({different}). Give another folder, or remove it "
            f"and run the command again."
        )
    return dataset


def damaged_result(path: str | os.PathLike[str], found: str = "") -> ValueError:
    """The error for a store of a study that is not whole."""
    return ValueError(
        f"--out: {os.fspath(path)} is damaged. Remove it and run the command again: what it held is then trained anew."
        f"{' Found: ' if found else ''}{found}"
    )
