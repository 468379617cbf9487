"""Layouts with standardized kernels: what their files hold beside the weights, and whether a file holds just that."""

from __future__ import annotations

from typing import Any

from bit.config import BitConfig
from convert.checkpoints.checkpoint import Checkpoint


def graph(container: str, config: BitConfig, name: str, profile: str) -> Any:
    """Return what a file of this container holds beside the weights, see `files.base.Metadata.graph`."""
    if container == "keras":
        from convert.conversion import keras_model

        return keras_model.network(config)
    from convert.conversion import onnx_graph

    return onnx_graph.network(config, name, profile)


def is_written_here(checkpoint: Checkpoint) -> bool:
    """Return whether all of a file but the weights is exactly what `graph` makes for them.

    Nothing else is run: another graph could run without end, or take all memory.
    """
    if checkpoint.file.container == "keras":
        from convert.conversion import keras_model

        return keras_model.is_written_here(checkpoint)
    from convert.conversion import onnx_graph

    return onnx_graph.is_written_here(checkpoint)
