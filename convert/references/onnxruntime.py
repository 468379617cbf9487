"""ONNX Runtime as a reference: it runs a written graph, a part at a time."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from convert.checkpoints.checkpoint import Checkpoint
from convert.conversion.onnx_graph import INPUT
from convert.network.runner import Batches, Implementation, Taps
from convert.network.taps import parts

FOLDER_OF_DATA = "session.model_external_initializers_file_folder_path"


def load(checkpoint: Checkpoint, dtype: str) -> Implementation:
    """The graph as it was written, in `float32`, on the CPU."""
    return _Graph(checkpoint)


class _Graph:
    name, dtype = "ONNX Runtime", "float32"

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._path = checkpoint.file.path.resolve()
        self._model = onnx.load(self._path, load_external_data=False)
        self._parts = parts(checkpoint.config)
        self.about = {"version": onnxruntime.__version__, "device": "CPU"}

    def run(self, part: str, inputs: Batches) -> Taps:
        """The taps of a part, see `Implementation.run`."""
        names = list(self._parts)
        before = names[names.index(part) - 1] if names.index(part) else INPUT
        taps = list(self._parts[part])
        session = self._session(before, taps)
        runs = {}
        for name, x in inputs.items():
            pixels = np.ascontiguousarray(x.transpose(0, 3, 1, 2) if x.ndim == 4 else x, np.float32)
            runs[name] = dict(zip(taps, session.run(taps, {before: pixels}), strict=True))
        for tap in taps:
            found = {name: run[tap] for name, run in runs.items()}
            yield (
                tap,
                {name: value.transpose(0, 2, 3, 1) if value.ndim == 4 else value for name, value in found.items()},
            )

    def _session(self, before: str, taps: list[str]) -> onnxruntime.InferenceSession:
        """The nodes on the way from one tap to others, as a graph of their own."""
        graph, wanted, nodes = self._model.graph, set(taps), []
        for node in reversed(graph.node):
            if wanted & set(node.output) and before not in node.output:
                nodes.append(node)
                wanted |= set(node.input)
        rank = 2 if before == "pooled" else 4
        given = helper.make_tensor_value_info(before, onnx.TensorProto.FLOAT, [None] * rank)
        results = [onnx.ValueInfoProto(name=tap) for tap in taps]
        kept = [item for item in graph.initializer if item.name in wanted]
        piece = helper.make_graph(nodes[::-1], "part", [given], results, kept)
        model = helper.make_model(piece, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry(FOLDER_OF_DATA, str(self._path.parent))
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
