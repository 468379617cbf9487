"""ONNX Runtime: the graph of a folder, on the CPU."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime

from convert.checkpoints.checkpoint import Checkpoint
from convert.conversion.onnx_graph import INPUT, is_written_here
from convert.errors import CheckpointError
from convert.evaluation.libraries import Loaded, Pixels
from convert.references.registry import FOREIGN_GRAPH


def load(checkpoint: Checkpoint) -> Loaded:
    """Return the graph. Raises `CheckpointError` for one that `bit convert` does not write: it is not run."""
    if not is_written_here(checkpoint):
        raise CheckpointError(FOREIGN_GRAPH)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    session = onnxruntime.InferenceSession(checkpoint.file.path, options, providers=["CPUExecutionProvider"])

    def compute(pixels: Pixels) -> Any:
        return session.run(None, {INPUT: np.ascontiguousarray(np.moveaxis(pixels, 3, 1))})[0]

    # The kernels are standardized in the graph; the manifest beside it states with which epsilon.
    epsilon = checkpoint.config.ws_eps if checkpoint.states_ws_eps else None
    return Loaded(f"ONNX Runtime {onnxruntime.__version__}", compute, epsilon)
