"""Right conversions of random networks, between random layouts and with random options, all of which must verify."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from random import Random

from mutants.networks import TARGETS, prepared

from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.manifest import Manifest
from convert.checkpoints.options import ConversionOptions
from convert.errors import ConvertError
from convert.progress import silent
from convert.verification.verify import Settings, verify


def judge_correct(number: int, seed: int) -> tuple[str, str]:
    """Convert and verify one network, with and without the source; return what it is, and what is refused."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rng = Random(f"correct {seed} {number}")
    dtype = rng.choice((None, None, None, "float64", "float32", "float16", "bfloat16"))
    head = rng.choice(("keep", "keep", "keep", "drop", f"new:{rng.randint(1, 9)}"))
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        place = Path(name)
        number += 10_000  # other networks than those of the mutants
        scaled = rng.choice(("keep", "keep", "keep", "compensate"))
        layout = rng.choice((*TARGETS, "onnx") if rng.random() < 0.1 else TARGETS)
        if layout not in ("timm", "transformers"):
            scaled = "keep"
        if layout == "onnx":
            dtype = None
        options = ConversionOptions(head=head, dtype=dtype, ws_eps=scaled)
        base = prepared(number, seed, place, options, layout)
        about = f"{base.about}, {options}, seed {seed}, number {number}"
        chosen = Settings(recordings=(place / "recordings",))
        manifest = Manifest.read(base.right)
        assert manifest is not None
        problems = []
        try:
            with Checkpoint(base.source) as source:
                results = {"with the source": verify(base.right, manifest, source, chosen, silent)}
            results["without the source"] = verify(base.right, manifest, None, chosen, silent)
            for side, result in results.items():
                if not result.passed:
                    failed = [check for check in result.checks if not check.passed][:2]
                    problems.append(f"{side}: {result.problems} {result.incomplete} {failed}")
        except ConvertError as error:
            problems.append(str(error))
        return about, "; ".join(problems)
