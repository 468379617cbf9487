"""ONNX Runtime as a reference: it runs a converted graph part by part."""

from __future__ import annotations

import onnx
import onnx.utils
import onnxruntime

from convert.checkpoints.checkpoint import Checkpoint
from convert.conversion.onnx_graph import INPUT, is_written_here
from convert.errors import CheckpointError
from convert.network.runner import Batches, Implementation, run_each
from convert.network.taps import Part, parts
from convert.references.registry import FOREIGN_GRAPH

WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


def load(checkpoint: Checkpoint, dtype: str) -> Implementation:
    """Return the graph as it was converted, in `float32`, on the CPU.

    Raises `CheckpointError` for a graph that `bit convert` does not write: it is not run.
    """
    if not is_written_here(checkpoint):
        raise CheckpointError(FOREIGN_GRAPH)
    return _Graph(checkpoint)


class _Graph:
    name, dtype = "ONNX Runtime", "float32"

    def __init__(self, checkpoint: Checkpoint) -> None:
        path = checkpoint.file.path.resolve()
        model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
        self._extractor = onnx.utils.Extractor(model)
        names = [INPUT, *(part.name for part in parts(checkpoint.config))]
        self._before = dict(zip(names[1:], names, strict=False))
        self._options = onnxruntime.SessionOptions()
        self._options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent))
        self._options.log_severity_level = 3
        self.about = {"version": onnxruntime.__version__, "device": "CPU"}

    def run(self, part: Part, x: Batches) -> list[Batches]:
        """Run the nodes between two taps, which the graph has by name."""
        before = self._before[part.name]
        nodes = self._extractor.extract_model([before], list(part.taps)).SerializeToString()
        session = onnxruntime.InferenceSession(nodes, self._options, providers=["CPUExecutionProvider"])
        return run_each(lambda images: session.run(part.taps, {before: images}), x, self.dtype, channels=1)
