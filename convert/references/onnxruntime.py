"""ONNX Runtime as a reference: it runs a converted graph part by part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from convert.checkpoints.checkpoint import Checkpoint
from convert.conversion.onnx_graph import INPUT
from convert.network.parameters import unit_name
from convert.network.runner import Batches, Implementation, PartRunner
from convert.network.taps import POOLED_TAPS, STEM_TAPS, parts

WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
TAPS = {"stem": STEM_TAPS, "pooled": POOLED_TAPS, "logits": ("logits",)}


def load(checkpoint: Checkpoint, dtype: str) -> Implementation:
    """Return the graph as it was converted, in `float32`, on the CPU."""
    return _Graph(checkpoint)


class _Graph(PartRunner):
    name, dtype = "ONNX Runtime", "float32"

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._path = checkpoint.file.path.resolve()
        self._model = onnx.load(self._path, load_external_data=False)
        names = [INPUT, *(part.name for part in parts(checkpoint.config))]
        self._before = dict(zip(names[1:], names, strict=False))
        self.about = {"version": onnxruntime.__version__, "device": "CPU"}

    def run(self, kind: str, x: Batches, *place: int) -> list[Batches]:
        """Run the nodes between two taps, which the graph has by name."""
        taps = (unit_name(*place),) if kind == "unit" else TAPS[kind]
        before, outputs = self._before[taps[-1]], []
        session = self._session(before, taps)
        for images in x.values():
            given = np.ascontiguousarray(images.transpose(0, 3, 1, 2) if images.ndim == 4 else images, np.float32)
            values = session.run(taps, {before: given})
            outputs.append([value.transpose(0, 2, 3, 1) if value.ndim == 4 else value for value in values])
        return [dict(zip(x, values, strict=True)) for values in zip(*outputs, strict=True)]

    def _session(self, before: str, taps: Sequence[str]) -> onnxruntime.InferenceSession:
        """Return the nodes from one tap to others as a graph of their own."""
        graph, needed, nodes = self._model.graph, set(taps), []
        for node in reversed(graph.node):
            if needed & set(node.output) and before not in node.output:
                nodes.append(node)
                needed |= set(node.input)
        rank = 2 if before == "pooled" else 4
        given = helper.make_tensor_value_info(before, onnx.TensorProto.FLOAT, [None] * rank)
        results = [onnx.ValueInfoProto(name=tap) for tap in taps]
        weights = [item for item in graph.initializer if item.name in needed]
        part = helper.make_graph(nodes[::-1], "part", [given], results, weights)
        model = helper.make_model(part, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry(WEIGHTS_FOLDER, str(self._path.parent))
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
