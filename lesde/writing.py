"""Files and folders put in place whole: checked first, written beside their place, moved there at once.

A process that is killed, at any moment, leaves the old or the new under the name. What it was writing stays in a folder
``.lesde-xxxxxxxx`` beside the place, in which a file is locked as long as the process lives; the next command that
writes there removes it. File systems without locks keep such left-overs.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

__all__ = ["Target", "about_lock", "lock", "make_parents", "recover", "replace_file"]

_PREFIX = ".lesde-"
_LOCK = "lesde.lock"
_UNBORN = 3600.0
"""Seconds after which a folder without a word about its process is one that was killed as it made it."""


@dataclass(frozen=True)
class Target:
    """What a command is to write, and where.

    Parameters
    ----------
    path : Path
    name : str
        What a message calls it, such as ``--out``.
    folder : bool
        Whether it is a folder, such as a Zarr store, and not a file.
    overwrite : bool
        Whether what stands there may be replaced.
    foreign : callable, optional
        Says of what stands there why it may not be replaced nevertheless, in words that follow the path; None where it
        may. Needed for a folder.
    inputs : sequence of Path
        What is read, which is never replaced or written into.
    """

    path: Path
    name: str = "path"
    folder: bool = False
    overwrite: bool = False
    foreign: Callable[[Path], str | None] | None = None
    inputs: Sequence[Path] = ()

    @property
    def place(self) -> Path:
        """Where it is, links followed: a link stays one."""
        return Path(os.path.realpath(self.path))

    def check(self) -> None:
        """Refuse what cannot be written, before anything is computed.

        Raises
        ------
        ValueError
        """
        place, parent, missing = self.place, self.place.parent, [self.place.name]
        try:
            self._check_inputs(place)
            while not parent.exists() and parent != parent.parent:
                missing.append(parent.name)
                parent = parent.parent
            if not parent.is_dir():
                raise self._refused(f"cannot be: {parent} is no folder")
            longest = os.pathconf(parent, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
            for part in missing:
                if len(os.fsencode(part)) > longest:
                    raise self._refused(f"has a name of more than {longest} bytes")
            recover(parent)
            if len(missing) == 1:
                self._check_old(place)
            # Asking for permission knows neither all file systems nor the administrator.
            os.rmdir(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        except OSError as error:
            raise self._refused(f"cannot be written ({error.strerror or error})") from None

    def put(self, write: Callable[[Path], object]) -> None:
        """Have it written under another name by ``write``, and move it to its place.

        Raises
        ------
        ValueError
            As `check`; also where something came to stand there meanwhile.
        OSError
            Where it cannot be written, for instance on a full disk. Nothing of it stays.
        """
        self.check()
        place = self.place
        made = make_parents(place)
        try:
            with _scratch(place) as scratch:
                new = scratch / "new" / place.name  # which keeps its ending
                new.parent.mkdir()
                write(new)
                self._move(new, place, scratch / "old")
        except BaseException as error:
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            if isinstance(error, OSError):
                # In place of a name that nobody gave.
                why = error.strerror or str(error)
                raise OSError(error.errno, why, str(self.path)) from error
            raise

    def _check_inputs(self, place: Path) -> None:
        for given in self.inputs:
            for part in (place, *place.parents):
                with contextlib.suppress(OSError):
                    if os.path.samefile(part, given):
                        what = "is the input" if part == place else f"is inside the input {given}"
                        raise self._refused(what)
        for part in place.parents:
            if (part / "zarr.json").is_file():
                raise self._refused(f"is inside the Zarr store {part}")

    def _check_old(self, place: Path) -> None:
        """Refuse to replace what stands there, unless it may be."""
        if not os.path.lexists(place):
            return
        if place.is_dir() and not self.folder:
            raise self._refused("is a folder, and a file is to be written")
        if not place.is_dir() and self.folder:
            raise self._refused("is a file, and a folder is to be written")
        if not self.overwrite:
            raise self._refused("exists", "give another name, or --overwrite")
        if not self.folder and not place.is_file():
            raise self._refused("is no ordinary file")
        if not os.access(place, os.W_OK):
            raise self._refused("is read-only")
        why = self.foreign(place) if self.foreign is not None else None
        if why:
            raise self._refused(why)

    def _move(self, new: Path, place: Path, old: Path) -> None:
        if not self.overwrite or not os.path.lexists(place):
            try:
                _move_where_nothing_is(new, place)
            except OSError:
                if not os.path.lexists(place):
                    raise
                raise self._refused(
                    "was written by somebody else meanwhile", "give another name"
                ) from None
        elif not self.folder:
            os.replace(new, place)
        elif not _exchange(new, place):
            os.rename(place, old)  # put back by whoever removes the scratch folder
            os.rename(new, place)

    def _refused(self, why: str, what_to_do: str = "give another name") -> ValueError:
        shown = str(self.path)
        if len(shown) > 300:
            shown = f"{shown[:140]}…{shown[-140:]}"
        return ValueError(f"{self.name} = {shown} {why}; {what_to_do}.")


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file by a function that is given a name, in place of what has its name."""
    Target(path, overwrite=True).put(write)


def lock(path: Path, about: dict[str, Any], wait: bool = False) -> IO[str] | None:
    """Lock a file until it is closed or the process ends, and write into it whose it is.

    Returns
    -------
    file or None
        None where another process has it. On a file system without locks nobody is kept out.
    """
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    taken = _take(file, wait)
    if taken is False:
        file.close()
        return None
    mine = {"host": platform.node(), "process": os.getpid(), "locks": taken is True, **about}
    try:
        file.seek(0)
        file.truncate()
        file.write(json.dumps(mine))
        file.flush()
    except OSError:  # a full disk
        with contextlib.suppress(OSError):
            file.close()
        path.unlink()
        raise
    return file


def about_lock(path: Path) -> dict[str, Any]:
    """Whose a locked file is; empty where that cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def recover(parent: Path) -> None:
    """Remove what killed processes of this package left in a folder, and put back a store that one had set aside."""
    try:
        names = [name for name in os.listdir(parent) if re.fullmatch(r"\.lesde-[a-z0-9_]{8}", name)]
    except OSError:
        return
    for name in names:
        scratch = parent / name
        with contextlib.suppress(OSError):
            if not scratch.is_symlink() and scratch.is_dir():
                _remove_dead(scratch)


def _remove_dead(scratch: Path) -> None:
    """Remove a left-over if its process is dead."""
    about = about_lock(scratch / _LOCK)
    if not about:  # it is just being made, or the process was killed as it made it
        old = time.time() - scratch.stat().st_mtime > _UNBORN
        if old and set(os.listdir(scratch)) <= {_LOCK}:
            shutil.rmtree(scratch)
    elif about.get("host") == platform.node() and about.get("locks"):
        with open(scratch / _LOCK, "a+", encoding="utf-8") as file:
            dead = _take(file) is True
        if dead:
            _remove(scratch, scratch.parent / Path(str(about.get("name"))).name)


@contextlib.contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    """A folder beside a place, on the same file system, that goes in the end."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place.parent))
    file = None
    try:
        file = lock(folder / _LOCK, {"name": place.name}, wait=True)
        yield folder
    finally:
        if file is not None:
            with contextlib.suppress(OSError):  # a full disk
                file.close()
        _remove(folder, place)


def _remove(scratch: Path, place: Path) -> None:
    """Remove a scratch folder, last what tells whose it is, so that the rest of it can be told after a kill.

    What was set aside is put back if nothing came in its place.
    """
    if (scratch / "old").exists() and not os.path.lexists(place):
        os.rename(scratch / "old", place)
    for part in ("new", "old"):
        shutil.rmtree(scratch / part, ignore_errors=True)
    shutil.rmtree(scratch, ignore_errors=True)


def _take(file: IO[str], wait: bool = False) -> bool | None:
    """Lock an open file; False where another has it, None where the file system has no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(1 << 30)  # beyond what is written, as nobody could read a locked part
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        held = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
        return False if error.errno in held else None
    return True


def make_parents(place: Path) -> list[Path]:
    """Make the folders that a path needs; those that were missing, the innermost first."""
    missing = [folder for folder in place.parents if not folder.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _move_where_nothing_is(new: Path, place: Path) -> None:
    """Move a file or folder, and fail where something stands."""
    if new.is_dir() or os.name == "nt":
        os.rename(new, place)  # which fails there, other than for a file on Linux and macOS
        return
    try:
        os.link(new, place)
    except FileExistsError:
        raise
    except OSError:  # no links here
        if os.path.lexists(place):
            raise
        os.rename(new, place)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step, which some systems and file systems can; whether it was done."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        names = os.fsencode(one), os.fsencode(other)
        if sys.platform == "linux":
            here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
            return bool(library.renameat2(here, names[0], here, names[1], exchange) == 0)
        if sys.platform == "darwin":
            return bool(library.renamex_np(*names, 2) == 0)  # RENAME_SWAP
    except (OSError, AttributeError, TypeError):
        pass
    return False
