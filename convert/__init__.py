"""Convert BiT weights between libraries, and prove that nothing changed.

    import convert

    result = convert.convert("Synthetic-R50x1", to="timm")  # verified, or VerificationError
    print(result.folder, result.verification.passed)

Functions and classes are imported when they are first used: `import convert` imports neither
NumPy nor a framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bit import __version__
from convert.errors import (
    CheckpointError,
    ConvertError,
    DownloadError,
    HubError,
    IncompleteError,
    TrainingError,
    UsageError,
    VerificationError,
)

if TYPE_CHECKING:
    from convert.api import (
        ConversionResult,
        cache_folder,
        check_signature,
        classify,
        compare,
        convert,
        evaluate,
        inspect,
        publish,
        record,
        sign,
        verify,
    )
    from convert.checkpoints.manifest import Manifest
    from convert.evaluation.results import Evaluation
    from convert.finetuning.run import finetune
    from convert.published.catalogue import Published, zoo
    from convert.publishing.publish import Publication
    from convert.signing.check import Signature
    from convert.verification.inspection import Inspection as Inspection
    from convert.verification.results import Difference, Verification

__all__ = [
    "CheckpointError",
    "ConversionResult",
    "ConvertError",
    "Difference",
    "DownloadError",
    "Evaluation",
    "HubError",
    "IncompleteError",
    "Inspection",
    "Manifest",
    "Publication",
    "Published",
    "Signature",
    "TrainingError",
    "UsageError",
    "Verification",
    "VerificationError",
    "__version__",
    "cache_folder",
    "check_signature",
    "classify",
    "compare",
    "convert",
    "evaluate",
    "finetune",
    "inspect",
    "publish",
    "record",
    "sign",
    "verify",
    "zoo",
]


if not TYPE_CHECKING:  # for a type checker an unknown name must stay an error

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first used: of `convert.api`, but for `finetune`."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = {"finetune": "convert.finetuning.run"}.get(name, "convert.api")
        return getattr(importlib.import_module(module), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
