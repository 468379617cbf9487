"""The folder beside the result in which a training keeps its state, `OUT.training`.

run.json        what is trained on what, with which settings: a run with others is refused
start/          the checkpoint in the layout of transformers, with a head for the classes
steps/          checkpoints of the training, and TensorBoard's logs
NAME/           the trained network, from which OUT is converted
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bit.files import read_json, short
from convert.errors import CheckpointError
from convert.files.atomic import write_json

RUN_NAME, LOCK_NAME = "run.json", "lock"
START_NAME, STEPS_NAME = "start", "steps"
UNFINISHED = "."
"""Names of files and folders that are being written, or were when a run was killed, start with this."""


class Workplace:
    """The paths in a training's folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out.with_name(f"{out.name}.training")
        self.start, self.steps = self.path / START_NAME, self.path / STEPS_NAME
        self.trained = self.path / out.name
        if out.name in (START_NAME, STEPS_NAME, RUN_NAME, LOCK_NAME):
            raise CheckpointError(f"the result cannot have the name {out.name}; choose another --out")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs out. Raises `CheckpointError` if there is one, and for a folder of something else."""
        if self.path.exists() and not self.path.is_dir():
            raise CheckpointError(f"{self.path} exists and is not a folder; choose another --out")
        known = {RUN_NAME, LOCK_NAME, START_NAME, STEPS_NAME, self.out.name}
        names = sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []
        if other := [name for name in names if name not in known and not name.startswith(UNFINISHED)]:
            raise CheckpointError(
                f"{self.path} holds {short(other[0])}, which is not part of a training; choose another --out"
            )
        created = [parent for parent in self.path.parents if not parent.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / LOCK_NAME, "wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"another run trains in {self.path}; wait for it, or choose another --out"
                raise CheckpointError(message) from None
            try:
                yield
            finally:
                if not self._begun:
                    shutil.rmtree(self.path)
                    with contextlib.suppress(OSError):
                        for parent in created:
                            parent.rmdir()

    @property
    def _begun(self) -> bool:
        """True if there is more than the statement of what shall be trained."""
        return any(path.name not in (RUN_NAME, LOCK_NAME) for path in self.path.iterdir())

    def begin(self, run: Mapping[str, Any], force: bool) -> None:
        """Remember what is trained, unless the same was begun before.

        Raises `CheckpointError` if the folder is of a training with another checkpoint, data or settings, unless
        `force`: then it is emptied.
        """
        path = self.path / RUN_NAME
        if force:
            path.unlink(missing_ok=True)
            self.clear()
        if path.exists() and self._begun:
            try:
                before = read_json(path)
            except ValueError as error:
                raise CheckpointError(f"{error}; --force begins again") from None
            if different := [f"{name} {short(before.get(name))}" for name in run if before.get(name) != run[name]]:
                asked = ", ".join(f"{name} {short(run[name])}" for name in run if before.get(name) != run[name])
                raise CheckpointError(
                    f"{self.path} holds a training with {', '.join(different)}, not {asked}; repeat the same command "
                    "to go on with it, choose another --out, or begin again with --force"
                )
            return
        self.clear()
        write_json(path, dict(run))

    def run(self) -> dict[str, Any] | None:
        """Return what was trained here; None if that is not known."""
        try:
            return read_json(self.path / RUN_NAME)
        except (OSError, ValueError):
            return None

    def clear(self) -> None:
        """Remove what an earlier training left."""
        for folder in (self.start, self.steps, self.trained):
            shutil.rmtree(folder, ignore_errors=True)

    def finish(self) -> None:
        """Remove what only a training that goes on needs; the logs stay."""
        shutil.rmtree(self.start, ignore_errors=True)
        for path in self.steps.glob("checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)
