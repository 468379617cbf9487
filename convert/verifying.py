"""Verify a conversion: a folder of this program, weights that another program wrote, or a repository on the Hub."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, Unpack

from convert import layouts
from convert.checkpoints.checkpoint import Checkpoint, checkpoint_name
from convert.checkpoints.epsilon import Training, check_ws_eps, training_of
from convert.checkpoints.manifest import MANIFEST_NAME, Manifest, is_signed
from convert.conversion.existing import converted_folder, default_folder
from convert.conversion.plan import Plan
from convert.errors import CheckpointError, ConvertError, UsageError, check_choice, check_names
from convert.files.atomic import HeldFolder
from convert.files.base import combined_sha256
from convert.files.containers import find_weights
from convert.options import CheckOptions, SourceOptions, StrPath, VerifyOptions
from convert.progress import Progress, silent
from convert.published import catalogue
from convert.publishing.signature import check_signature, trust_of
from convert.references.recordings import SHIPPED, find_recordings, recordings_folder
from convert.references.registry import REFERENCES
from convert.reporting.files import write_report, write_report_file
from convert.signing.check import Signature
from convert.sources.hub import a_conversion
from convert.sources.provenance import copy_of_googles
from convert.sources.resolve import SYNTHETIC, fetch_repository, hub_name, locate, user_path
from convert.verification.bytes import check_replayable, replayed
from convert.verification.foreign import verify_foreign
from convert.verification.results import Verification
from convert.verification.verify import Settings, begun, compare_folder_files
from convert.verification.verify import verify as verify_conversion


@dataclass(frozen=True)
class Conversion:
    """A conversion to verify."""

    path: Path
    """The folder of a manifest; else a folder or file of weights."""
    name: str
    """The name that was given."""
    manifest: Manifest | None
    """None if another program converted."""
    fetched: bool = False
    """True if it is a copy of a repository on the Hub."""

    @property
    def holds_report(self) -> bool:
        """True if the report is written beside the weights."""
        return self.manifest is not None and not self.fetched and not is_signed(self.path)

    @classmethod
    def signed(cls, signature: Signature) -> Self:
        """Return the folder of a signature that was checked."""
        return cls(signature.folder, str(signature.folder), Manifest.read(signature.folder))


def find_conversion(
    named: StrPath, *, to: str = "transformers", source: StrPath | None = None, progress: Progress = silent
) -> Conversion:
    """Return what a path, `hf:owner/name` or the name of a converted checkpoint stands for.

    With a `source`, an existing path stands for itself. Raises `CheckpointError` if there is nothing of that name,
    and `DownloadError` for a repository that cannot be fetched.
    """
    name = os.fspath(named)
    if (fetched := fetch_repository(name, progress, a_conversion)) is not None:
        return Conversion(fetched, name, Manifest.read(fetched), fetched=True)
    path = user_path(named)
    if not name or not path.exists() or (path / MANIFEST_NAME).is_file():
        folder = converted_folder(named, to)
        return Conversion(folder, name, Manifest.read(folder))
    if path.is_file() and (manifest := Manifest.beside(path)) is not None:
        return Conversion(path.parent, name, manifest)
    converted = default_folder(named, layouts.find(to).name)
    if (converted / MANIFEST_NAME).is_file() and (source is None or _is_same(path, user_path(source))):
        return Conversion(converted, name, Manifest.read(converted))
    return Conversion(path, name, None)


def verify(
    folder: StrPath,
    *,
    to: str = "transformers",
    source: StrPath | None = None,
    progress: Progress = silent,
    **options: Unpack[CheckOptions],
) -> Verification:
    """Verify a converted folder, and write the report beside the weights; nothing is written into a signed folder.

    `folder` may also be the name of the checkpoint that was converted, with `to` for the layout; a folder or file of
    weights that another program converted from `source`; or `hf:owner/name`. For the last two no report is written,
    unless the option `report` names a file. `source` is a checkpoint as `convert` takes it, needed where it was
    moved or is not known. A repository of this program is converted again from the source that is named there,
    and every byte is compared. With a key or an identity the signature is checked first, see `check_signature`;
    then no comparison need be possible. Returns the result whether it passed or not; if it could not be completed,
    an earlier report of a pass is kept. Raises `CheckpointError` for what cannot be verified, `VerificationError`
    for an invalid signature and damaged weights, and `UsageError` for options.
    """
    check_names(options, CheckOptions)
    check_ws_eps(options.get("source_ws_eps"))
    signature = options.get("signature")
    if signature is None and (trust := trust_of(options)) is not None:
        signature = check_signature(folder, to=to, trust=trust, progress=progress)
    if signature is not None:
        options["signature"], found = signature, Conversion.signed(signature)
    else:
        found = find_conversion(folder, to=to, source=source, progress=progress)
    return verify_found(found, source, progress, **options)


def verify_found(
    found: Conversion, source: StrPath | None, progress: Progress, **options: Unpack[CheckOptions]
) -> Verification:
    """Verify what `find_conversion` found, see `verify`."""
    gradients, signature, path = options.get("gradients", False), options.get("signature"), found.path
    settings = replace(settings_of(options, full=True), replay=options.get("replay", False), gradients=gradients)
    for reference in ("pytorch", "flax") if gradients else ():
        require(reference)
    file = user_path(options.get("report") or "")
    if options.get("report") and is_signed(path) and path.resolve() in file.resolve().parents:
        raise UsageError(f"{file} is in the signed folder, which stays as it is; choose another --report")
    manifest: Manifest | None = found.manifest
    if manifest is None:
        verification, manifest = _verify_foreign(found, source, settings, progress, options)
    else:
        if gradients and layouts.find(manifest.layout).folded:
            raise UsageError(f"{path} holds standardized kernels, which have no gradients; leave out --gradients")
        if found.fetched and signature is None:
            verification = _verify_fetched(found, manifest, source, settings, progress, options)
        else:
            verification = _verify_own(found, manifest, source, settings, progress, options)
    if signature is not None:
        signature.check_same(verification.files)
    if options.get("report"):
        write_report_file(file, verification, manifest)
    return verification


def _verify_own(
    found: Conversion,
    manifest: Manifest,
    source: StrPath | None,
    settings: Settings,
    progress: Progress,
    options: CheckOptions,
) -> Verification:
    """Verify a folder of this program, and write the report there."""
    path = found.path
    origin = _located(source, progress, options) if source is not None else path / manifest.source.path
    known = source is not None or origin.exists()
    training = training_of(manifest, options.get("source_ws_eps"))
    with Checkpoint(origin, manifest.name, training=training) if known else contextlib.nullcontext() as opened:
        needed = options.get("signature") is None or settings.replay
        if opened or needed or find_recordings(manifest.origin.sha256, settings.recordings, manifest.origin.ws_eps):
            return verify_folder(path, manifest, opened, settings, progress)
        reason = f"nothing was compared again: there is no recording for {manifest.name}; name the source: --source"
        labels = (manifest.name, manifest.layout, manifest.architecture, manifest.classes)
        return Verification(*labels, warnings=(reason,))


def _verify_fetched(
    found: Conversion,
    manifest: Manifest,
    source: StrPath | None,
    settings: Settings,
    progress: Progress,
    options: CheckOptions,
) -> Verification:
    """Verify a repository of this program, convert again what it names as the source, and write nothing."""
    training = training_of(manifest, options.get("source_ws_eps"))
    with contextlib.ExitStack() as stack:
        opened, reason = None, ""
        try:
            place = source if source is not None else _source_of(manifest)
            path = _located(place, progress, options, local=source is not None)
            opened = stack.enter_context(Checkpoint(path, manifest.name, training=training))
            if source is None and combined_sha256(opened.file.digests()) != manifest.source.sha256:
                opened, reason = None, f"{place} is not the file that {MANIFEST_NAME} names"
        except (ConvertError, OSError) as error:
            if source is not None:
                raise
            reason = str(error)
        if opened is None:
            reason = f"bytes were not compared: {reason}; name the source with --source"
            if find_recordings(manifest.origin.sha256, settings.recordings, manifest.origin.ws_eps) is None:
                files, problems, warnings = compare_folder_files(found.path, manifest)
                return replace(begun(manifest, files, problems, warnings), incomplete=(reason,))
        verification = verify_conversion(found.path, manifest, opened, settings, progress)
        if opened is None:
            return replace(verification, warnings=(*verification.warnings, reason))
        try:
            check_replayable(found.path, manifest, opened)
        except CheckpointError as error:
            if settings.replay:
                raise
            return replace(verification, warnings=(*verification.warnings, f"not converted again: {error}"))
        return replayed(verification, manifest, opened, progress)


def _source_of(manifest: Manifest) -> str:
    """Return the name of the source that a manifest names. Raises `CheckpointError` if it names none.

    Of addresses only those of Google's bucket and of the Hub are fetched. The path in the manifest is not used: it
    is one of another machine.
    """
    address = manifest.source.address
    if address is not None and address.startswith("hf:"):
        return address
    published = (item.name for item in catalogue.published().values() if item.url == address)
    if (name := next(published, None)) is not None:
        return name
    if manifest.source.sha256 == manifest.origin.sha256 and _is_known(manifest.origin.name):
        return manifest.origin.name
    raise CheckpointError(f"{MANIFEST_NAME} names no address of the source {manifest.source.path}")


def _verify_foreign(
    found: Conversion, source: StrPath | None, settings: Settings, progress: Progress, options: CheckOptions
) -> tuple[Verification, Manifest]:
    """Verify weights that another program converted, and write nothing."""
    if settings.replay:
        raise UsageError(f"{found.name} holds no {MANIFEST_NAME}: nothing can be converted again; leave out --replay")
    name, notes = source, tuple[str, ...]()
    if name is None:
        guess = hub_name(found.name) or checkpoint_name(found.path)
        if not _is_known(guess):
            raise CheckpointError(
                f"{found.name} holds no {MANIFEST_NAME}, so it is not known what it was converted from; "
                "name the checkpoint with --source"
            )
        published = catalogue.find(guess)
        name = published.name if published is not None else guess
        notes = (f"the source is taken to be {name}, as the name says; another one is named with --source",)
    find_weights(found.path)  # before a source is fetched
    path = _located(name, progress, options, local=source is not None)
    with Checkpoint(path, hub_name(os.fspath(name)), training=_training(path, options)) as opened:
        verification, manifest = verify_foreign(found.path, opened, settings, progress)
    return replace(verification, warnings=(*notes, *verification.warnings)), manifest


def verify_folder(
    folder: Path,
    manifest: Manifest,
    source: Checkpoint | None,
    settings: Settings,
    progress: Progress,
    planned: Plan | None = None,
) -> Verification:
    """Verify an existing folder, and write the report there unless it is signed.

    Nothing is written if another folder took the name in the meantime.
    """
    with HeldFolder(folder) as held:
        if Manifest.read(folder) != manifest:
            raise CheckpointError(f"{folder} was replaced in the meantime; run the command again")
        if settings.replay:
            check_replayable(folder, manifest, source)
        verification = verify_conversion(folder, manifest, source, settings, progress, planned)
        if settings.replay and source is not None:
            verification = replayed(verification, manifest, source, progress)
        held.check()
        if is_signed(folder):
            return verification
        trouble = write_report(held.place, verification, manifest, shown=folder)
        held.check()
    return replace(verification, warnings=(*verification.warnings, trouble)) if trouble else verification


def require(reference: str) -> None:
    """Raise `UsageError` if a package that a reference implementation needs is missing."""
    package = REFERENCES[reference].missing
    if package is not None:
        raise UsageError(f"{package} is not installed; run make setup, or {REFERENCES[reference].install}")


def settings_of(options: VerifyOptions, full: bool) -> Settings:
    """Return the reference implementations to run and the folders of recordings. Raises `UsageError`."""
    required = tuple(options.get("references", ()))
    for name in required:
        check_choice("reference", name, REFERENCES)
    chosen = required or (tuple(REFERENCES) if options.get("full", full) else ())
    return Settings(chosen, required, (SHIPPED, recordings_folder(options.get("recordings"))))


def open_checkpoint(
    checkpoint: StrPath, progress: Progress, options: SourceOptions, fallback: bool = False
) -> Checkpoint:
    """Open a checkpoint; a name is downloaded or generated first.

    With `fallback` the option `source_ws_eps` is for files that do not state the epsilon; else these must not state
    another one.
    """
    check_ws_eps(options.get("source_ws_eps"))  # before anything is fetched
    path = _located(checkpoint, progress, options)
    return Checkpoint(path, hub_name(os.fspath(checkpoint)), training=_training(path, options, fallback))


def _training(path: Path, options: SourceOptions, fallback: bool = False) -> Training:
    """Return what the options and the place of a checkpoint tell about the training."""
    return Training(check_ws_eps(options.get("source_ws_eps")), copy_of_googles(path), fallback)


def _located(checkpoint: StrPath, progress: Progress, options: SourceOptions, local: bool = True) -> Path:
    """Return the path of a checkpoint; a name is downloaded or generated first. Without `local` it is a name."""
    folder = user_path(options.get("checkpoints", "checkpoints"))
    return locate(os.fspath(checkpoint), folder, progress, options.get("mirror"), local)


def _is_known(name: str) -> bool:
    """Return whether a checkpoint of this name can be downloaded or generated."""
    return name in SYNTHETIC or catalogue.find(name) is not None


def _is_same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and os.path.samefile(one, other)
