"""Recognize a folder that holds the conversion that is asked for."""

from __future__ import annotations

from pathlib import Path

import msgspec

from convert.checkpoints.manifest import Manifest, foreign_names
from convert.checkpoints.options import ConversionOptions
from convert.errors import CheckpointError
from convert.files.atomic import NewFolder
from convert.layouts.layout import Layout


def existing_conversion(target: Path, layout: Layout, changes: ConversionOptions) -> Manifest:
    """Return the manifest of an existing conversion to this layout with these options, or raise `CheckpointError`."""
    try:
        manifest = Manifest.read(target)
    except CheckpointError:
        raise occupied(target, "and is not a complete conversion of this version") from None
    if manifest is None:
        NewFolder(target, foreign_names, force=True)  # refuses a file, and a folder of something else
        raise occupied(target, "and is not a conversion")
    if manifest.layout != layout.name:
        raise occupied(target, f"and holds the layout {manifest.layout}")
    there, asked = msgspec.to_builtins(manifest.options), msgspec.to_builtins(changes)
    differing = [f"{name} {value or 'unchanged'}" for name, value in there.items() if value != asked[name]]
    if differing:
        raise occupied(target, f"and was converted with {', '.join(differing)}")
    return manifest


def occupied(target: Path, reason: str) -> CheckpointError:
    """Return the error that a folder holds something else than the conversion that is asked for."""
    return CheckpointError(
        f"{target} exists {reason}; replace it with --force (with make: ARGS=--force), or choose another --out"
    )
