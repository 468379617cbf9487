"""The Python API: one function for each command of `bit`.

Each function returns a value and prints nothing; `progress(task, done, total)`, see
`convert.progress`, is called while it works. A checkpoint is a path, a published name such as
`BiT-M-R50x1`, `hf:owner/name`, or `Synthetic-R50x1`: seeded weights, generated on the spot. Errors
are those of `convert.errors`, and `OSError` for files that cannot be read or written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import msgspec

from convert import layouts
from convert.checkpoints.manifest import Manifest, foreign_names
from convert.checkpoints.options import ConversionOptions
from convert.conversion.existing import converted_folder as converted_folder
from convert.conversion.existing import default_folder, existing_conversion, occupied
from convert.conversion.plan import Plan, plan
from convert.conversion.write import write
from convert.errors import CheckpointError, IncompleteError, VerificationError, check_names
from convert.evaluating import evaluate as evaluate
from convert.evaluation.results import Evaluation as Evaluation
from convert.files.atomic import NewFolder
from convert.files.base import combined_sha256
from convert.files.sharded import INDEX_SUFFIX
from convert.options import (
    ConvertOptions,
    PushOptions,
    SourceOptions,
    StrPath,
)
from convert.progress import Progress, silent
from convert.published.catalogue import Published as Published
from convert.published.catalogue import zoo as zoo
from convert.publishing.gate import Gate, check_folder
from convert.publishing.publish import Publication, PublishOptions
from convert.publishing.publish import publish as publish_folder
from convert.publishing.signature import check_signature as check_signature
from convert.publishing.signature import sign as sign
from convert.publishing.signature import signing_options
from convert.references import recorder
from convert.references.recordings import SHIPPED, recordings_folder
from convert.references.registry import own_reference
from convert.reporting.files import write_report
from convert.signing.check import Signature as Signature
from convert.sources.resolve import cache_folder as cache_folder
from convert.sources.resolve import user_path
from convert.verification.comparison import compare as compare_checkpoints
from convert.verification.inspection import Inspection
from convert.verification.inspection import inspect as inspect_checkpoint
from convert.verification.results import INCOMPLETE, Difference, Verification
from convert.verification.verify import Settings
from convert.verification.verify import verify as verify_conversion
from convert.verifying import Conversion as Conversion
from convert.verifying import find_conversion as find_conversion
from convert.verifying import open_checkpoint, require, settings_of, verify_folder
from convert.verifying import verify as verify
from convert.verifying import verify_found as verify_found

if TYPE_CHECKING:
    from bit.classification import Prediction


@dataclass(frozen=True)
class ConversionResult:
    """A converted folder, and the result of the verification."""

    folder: Path
    manifest: Manifest
    """The content of `conversion.json`."""
    verification: Verification
    """Empty, and so not passed, after `verify=False`."""
    source: Path
    """The file or folder that was converted."""
    warnings: tuple[str, ...] = ()
    """Remarks on the source and the conversion; those on the verification are in `verification.warnings`."""
    loading: str = ""
    """Python that loads the folder; empty if the library of the layout has no model of this size."""
    created: bool = True
    """False if the folder already held exactly this conversion, verified."""


def convert(
    checkpoint: StrPath,
    to: str = "transformers",
    out: StrPath | None = None,
    *,
    progress: Progress = silent,
    **options: Unpack[ConvertOptions],
) -> ConversionResult:
    """Convert a checkpoint to a folder of the layout `to`, and verify the folder.

    `out` is the new folder, by default `converted/NAME/LAYOUT`. `options` are those of
    `convert.options.ConvertOptions`, which describes each: `dtype="bfloat16"`, `force=True`.
    A folder that already holds exactly this conversion, verified, is left as it is and returned.
    Raises `VerificationError` if the verification fails, and `IncompleteError` if it could not be
    completed, with the `ConversionResult` as attribute `result`; `CheckpointError` for a checkpoint or
    folder that cannot be used, `UsageError` for options, `DownloadError` and `HubError` for checkpoints
    that cannot be fetched.
    """
    check_names(options, ConvertOptions)
    layout = layouts.find(to)
    shard_size, force = options.get("max_shard_size"), options.get("force", False)
    changes = ConversionOptions(
        options.get("head", "keep"), options.get("dtype"), options.get("ws_eps", "keep"), options.get("profile")
    ).for_layout(layout, shard_size)
    settings = settings_of(options, full=False)
    own = own_reference(layout)
    if own and (layout.export.container == "onnx" or options.get("verify", True)):  # Keras does not write its files
        require(own)
    target = user_path(out) if out is not None else default_folder(checkpoint, to)
    existing = None if force or not os.path.lexists(target) else existing_conversion(target, layout, changes)
    output = NewFolder(target, foreign_names, force=force or existing is not None)
    with open_checkpoint(checkpoint, progress, options) as source:
        planned = plan(source, layout, changes, shard_size)
        if existing is not None:
            verification = _verified_before(target, existing, planned, settings, progress)
            return _passed(replace(_result(target, existing, planned), verification=verification, created=False))
        if target.resolve() in source.file.path.resolve().parents:
            raise CheckpointError(f"{target} holds {source.path}, which is to be converted; choose another --out")
        with output:
            manifest = write(planned, output, progress, options.get("allow_nonfinite", False))
            result = _result(target, manifest, planned)
            if not options.get("verify", True):
                output.commit()
                return result
            trouble = recorder.ensure_recorded(source, manifest.source.sha256, settings.recordings, progress)
            verification = verify_conversion(output.path, manifest, source, settings, progress, planned)
            result = replace(result, verification=verification, warnings=result.warnings + trouble)
            if unwritten := write_report(output.path, verification, manifest, shown=target):
                raise CheckpointError(f"{unwritten}; nothing was written or replaced")
            if verification.passed or not target.exists():
                output.commit()
            else:
                words = INCOMPLETE if verification.verdict == INCOMPLETE else "failed"
                kept = f"the verification {words}, so {target} was kept as it was"
                result = replace(result, warnings=(*result.warnings, kept))
            return _passed(result)


def inspect(checkpoint: StrPath, *, progress: Progress = silent, **options: Unpack[SourceOptions]) -> Inspection:
    """Describe a checkpoint: layout, network, dtype, and properties of the weights that stand out.

    Raises `CheckpointError` for a damaged or unknown file.
    """
    check_names(options, SourceOptions)
    with open_checkpoint(checkpoint, progress, options) as opened:
        return inspect_checkpoint(opened, progress)


def compare(
    first: StrPath,
    second: StrPath,
    *,
    taps: bool = True,
    progress: Progress = silent,
    **options: Unpack[SourceOptions],
) -> Difference:
    """Compare two checkpoints of any layouts, tensor by tensor and, with `taps`, tap by tap.

    Raises `CheckpointError` for networks of different sizes; the heads may differ.
    """
    check_names(options, SourceOptions)
    with open_checkpoint(first, progress, options) as one, open_checkpoint(second, progress, options) as other:
        return compare_checkpoints(one, other, progress, taps=taps)


def record(
    checkpoint: StrPath,
    *,
    recordings: StrPath | None = None,
    progress: Progress = silent,
    **options: Unpack[SourceOptions],
) -> Path:
    """Record the outputs of an original checkpoint's network, and return the folder of the recording.

    The oracle runs in float64; PyTorch and TensorFlow, where they are installed, in float32. The
    new folder is made in `recordings`, by default `recordings` in `cache_folder()`. Raises
    `CheckpointError` for a converted checkpoint and for weights whose outputs are not finite.
    """
    check_names(options, SourceOptions)
    with open_checkpoint(checkpoint, progress, options) as opened:
        return recorder.record(opened, recordings_folder(recordings), progress)


def publish(
    folder: StrPath,
    repository: str,
    *,
    to: str = "transformers",
    dry_run: bool = False,
    progress: Progress = silent,
    **options: Unpack[PushOptions],
) -> Publication:
    """Push a verified folder to `repository`, `owner/name`, on the Hugging Face Hub, in one commit.

    `folder` may also be the name of the checkpoint that was converted, with `to` for the layout.
    The quick verification is repeated first, unless `reverify=False`. With `dry_run` nothing is sent,
    and neither a token nor a network is needed. Raises `VerificationError` for a folder that is not
    exactly as it was verified, `CheckpointError` if the source is needed and missing, `HubError` for a
    request that fails, and `UsageError` for options that contradict each other.
    """
    check_names(options, PushOptions)
    path = converted_folder(folder, to)
    named, folders = options.pop("source", None), (SHIPPED, recordings_folder(options.pop("recordings", None)))
    source = user_path(named) if named is not None else None
    chosen = PublishOptions(dry_run=dry_run, source=source, recordings=folders, **signing_options(options))
    return publish_folder(path, repository, chosen, progress)


def classify(
    images: Sequence[StrPath], folder: StrPath, *, top: int = 5, progress: Progress = silent
) -> dict[Path, list[Prediction]]:
    """Return the `top` most probable labels of image files, and of every image in folders.

    `folder` holds a conversion of the layout transformers or timm. Needs PyTorch. Raises
    `CheckpointError` for a folder without a model and for files that are not images.
    """
    model = user_path(folder)
    if not model.is_dir():
        raise CheckpointError(f"there is no folder {str(model)!r}")
    require("pytorch")
    from bit.classification import classify as classify_files
    from bit.image_folder.files import image_files

    try:
        files = image_files([user_path(path) for path in images])
        return dict(classify_files(files, model, top, progress))
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def _result(target: Path, manifest: Manifest, planned: Plan) -> ConversionResult:
    """Return the result of a conversion that is not verified yet."""
    export = planned.layout.export
    loading = "" if export.caveat(planned.config) else export.loading.format(folder=target, name=manifest.name)
    verification = Verification(manifest.name, manifest.layout, manifest.architecture, manifest.classes)
    return ConversionResult(target, manifest, verification, planned.checkpoint.path, planned.remarks, loading)


def _verified_before(
    target: Path, manifest: Manifest, planned: Plan, settings: Settings, progress: Progress
) -> Verification:
    """Return the verification of a folder that holds exactly the planned conversion, or raise `CheckpointError`.

    It is verified again if reference implementations were asked for.
    """
    if combined_sha256(planned.checkpoint.file.digests()) != manifest.source.sha256:
        raise occupied(target, f"and was converted from a different file than {planned.checkpoint.path}")
    indexes = {name: content for name, content in planned.companions.items() if name.endswith(INDEX_SUFFIX)}
    stored = {path.name: msgspec.json.decode(path.read_bytes()) for path in target.glob(f"*{INDEX_SUFFIX}")}
    if [step.row for step in planned.steps] != manifest.tensors or stored != indexes:
        raise occupied(target, "and was converted with other options")
    if settings.references:
        return verify_folder(target, manifest, planned.checkpoint, settings, progress, planned)
    try:
        return check_folder(target, progress, Gate(recordings=settings.recordings)).result
    except VerificationError as error:
        reason = error.problems[0] if error.problems else "it was not verified"
        raise occupied(target, f"and holds this conversion, but {reason}; bit verify verifies it") from None


def _passed(result: ConversionResult) -> ConversionResult:
    """Return the result, or raise `VerificationError` or `IncompleteError`."""
    verification = result.verification
    if verification.passed:
        return result
    kind: type[VerificationError | IncompleteError] = VerificationError
    words, problems = "failed", verification.problems
    if verification.verdict == INCOMPLETE:
        kind, words, problems = IncompleteError, INCOMPLETE, verification.incomplete
    error = kind(f"the verification of {result.folder} {words}{': '.join(['', *problems[:1]])}", problems)
    error.result = result
    raise error
