"""Converting and verifying small checkpoints in tests."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bit.config import BitConfig
from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.manifest import Manifest, foreign_names
from convert.conversion.plan import plan
from convert.conversion.write import write
from convert.files.atomic import NewFolder
from convert.layouts import LAYOUTS
from convert.network.parameters import parameters
from convert.progress import Progress, silent
from convert.references.recordings import SHIPPED
from convert.reporting.files import write_report
from convert.sources.synthetic import parameter
from convert.verification.results import Verification
from convert.verification.verify import Settings, verify

GOOGLE = LAYOUTS["google"]
VERIFIED_LAYOUTS = [
    pytest.param(name, marks=pytest.mark.long) if name == "keras-saved" else pytest.param(name) for name in LAYOUTS
]
"""Every layout, as the parameter of a test that verifies a conversion: that of `keras-saved` starts TensorFlow."""


def convert(source: Path, layout: str, target: Path, allow_nonfinite: bool = False, **options: Any) -> Path:
    with Checkpoint(source) as checkpoint, NewFolder(target, foreign_names) as folder:
        write(plan(checkpoint, LAYOUTS[layout], **options), folder, silent, allow_nonfinite)
        folder.commit()
    return target


def arrays_of(config: BitConfig) -> dict[str, NDArray[np.float32]]:
    return {
        GOOGLE.key(item.place): parameter(GOOGLE.key(item.place), GOOGLE.shape(item)) for item in parameters(config)
    }


def bits_of(path: Path) -> dict[str, bytes]:
    """Return the bytes of every array of a checkpoint."""
    with Checkpoint(path) as checkpoint:
        found = {}
        for name, tensor in checkpoint.file.tensors.items():
            out = np.empty(tensor.size, tensor.dtype.bits)
            checkpoint.file.read(tensor, 0, out)
            found[name] = out.tobytes()
        return found


LABELS = {0: "cat", 1: "dog", 2: "fish", 3: "bird", 4: "newt"}


def with_config(folder: Path, **changes: object) -> Path:
    """Make a folder look as if another program wrote it: no manifest, and a changed `config.json`."""
    (folder / "conversion.json").unlink()
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))
    return folder


def verified(
    folder: Path,
    source: Path | None,
    references: tuple[str, ...] = (),
    required: tuple[str, ...] = (),
    recordings: tuple[Path, ...] = (SHIPPED,),
    progress: Progress = silent,
) -> Verification:
    """Verify a converted folder and write the report into it, as `bit verify` does."""
    manifest = Manifest.read(folder)
    assert manifest is not None
    with contextlib.ExitStack() as stack:
        opened = None if source is None else stack.enter_context(Checkpoint(source))
        result = verify(folder, manifest, opened, Settings(references, required, recordings), progress)
    assert write_report(folder, result, manifest) is None
    return result
