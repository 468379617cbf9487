"""Find the folder of a conversion, and recognize one that holds what is asked for."""

from __future__ import annotations

import os
from pathlib import Path

from convert import layouts
from convert.checkpoints.checkpoint import checkpoint_name
from convert.checkpoints.manifest import MANIFEST_NAME, Manifest, foreign_names
from convert.checkpoints.options import ConversionOptions
from convert.errors import CheckpointError
from convert.files.atomic import NewFolder
from convert.layouts.layout import Layout
from convert.options import StrPath
from convert.published.catalogue import find
from convert.published.preprocessing import SIZED
from convert.sources.resolve import hub_name, user_path


def existing_conversion(target: Path, layout: Layout, stated: ConversionOptions) -> Manifest:
    """Return the manifest of an existing conversion to this layout with these options, or raise `CheckpointError`.

    `stated` are the options as they were asked for. Without a profile any profile that follows from the source passes.
    """
    try:
        manifest = Manifest.read(target)
    except CheckpointError:
        raise occupied(target, "and is not a complete conversion of this version") from None
    if manifest is None:
        NewFolder(target, foreign_names, force=True)  # refuses a file, and a folder of something else
        raise occupied(target, "and is not a conversion")
    if manifest.layout != layout.name:
        raise occupied(target, f"and holds the layout {manifest.layout}")
    there = manifest.options
    changes = stated.for_layout(layout, None, there.profile if SIZED.fullmatch(there.profile or "") else None)
    differing = [
        f"{name} {words}" for name, words in there.words.items() if getattr(there, name) != getattr(changes, name)
    ]
    if differing:
        raise occupied(target, f"and was converted with {', '.join(differing)}")
    return manifest


def occupied(target: Path, reason: str) -> CheckpointError:
    """Return the error that a folder holds something else than the conversion that is asked for."""
    return CheckpointError(
        f"{target} exists {reason}; replace it with --force (with make: ARGS=--force), or choose another --out"
    )


def converted_folder(folder: StrPath, layout: str) -> Path:
    """Return a converted folder, given as a path or by the name of the checkpoint that was converted."""
    path, name = user_path(folder), os.fspath(folder)
    if (path / MANIFEST_NAME).is_file():
        return path
    converted = default_folder(folder, layouts.find(layout).name)
    if converted.is_dir() or not path.is_dir():
        path = converted
    if not path.is_dir():
        raise CheckpointError(f"there is no folder {name!r} or {path}; make it: bit convert {name} --to {layout}")
    return path


def default_folder(checkpoint: StrPath, layout: str) -> Path:
    """Return `converted/NAME/LAYOUT`; the name of a published checkpoint is Google's, even if timm's was given."""
    path, name = user_path(checkpoint), os.fspath(checkpoint)
    if path.exists():
        return Path("converted", checkpoint_name(path), layout)
    published = find(name)
    return Path("converted", published.name if published else hub_name(name) or path.name, layout)
