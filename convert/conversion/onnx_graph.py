"""Build BiT as an ONNX graph with standardized kernels; it computes the same function as `network.oracle`.

Inner values have the names of the taps, so that a runtime can return any of them. Batch size, height
and width are dynamic.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from bit import __version__
from bit.config import NORM_EPS, BitConfig
from convert.checkpoints.checkpoint import Checkpoint
from convert.files.onnx import LABELS, OnnxFile
from convert.network.parameters import STEM_SIZE, unit_name
from convert.published.preprocessing import preprocessor

OPSET = 17
IR_VERSION = 8
"""The first version of the format that has this operator set."""
INPUT = "pixel_values"


def network(config: BitConfig, name: str, profile: str) -> onnx.ModelProto:
    """Return the model without weights; add them as initializers with the names of the layout `onnx`.

    The input is `pixel_values`, `[N, C, H, W]` float32 in [-1, 1]; the output is `logits`, `[N, num_labels]`,
    or `pooled`, `[N, C]`, for a network without a head. The model's properties state the checkpoint's
    `name`, the labels and the preprocessing of `profile`.
    """
    build = _Builder(config)
    output, size = build.forward()
    batch = helper.make_tensor_value_info(
        INPUT, onnx.TensorProto.FLOAT, ["batch", config.num_channels, "height", "width"]
    )
    result = helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["batch", size])
    graph = helper.make_graph(build.nodes, config.architecture, [batch], [result])
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="bit-convert",
        producer_version=__version__,
    )
    properties = {
        "name": name,
        "architecture": config.architecture,
        "preprocessing": json.dumps(preprocessor(profile, name)),
    }
    if config.id2label is not None:
        properties[LABELS] = json.dumps([label for _, label in sorted(config.id2label.items())])
    helper.set_model_props(model, properties)
    return model


def is_written_here(checkpoint: Checkpoint) -> bool:
    """Return whether all of an ONNX file but the weights is exactly what `network` makes for them.

    Only such a graph may be run: any other could run without end, or take all memory.
    """
    assert isinstance(checkpoint.file, OnnxFile)
    return checkpoint.file.without_weights() == network(checkpoint.config, checkpoint.name, checkpoint.profile)


class _Builder:
    """Adds nodes to a graph; each method returns the name of the value that it adds."""

    def __init__(self, config: BitConfig) -> None:
        self.config = config
        self.nodes: list[onnx.NodeProto] = []
        groups = config.num_groups
        self.constant("groups", np.array([0, groups, -1], np.int64))
        self.constant("ones", np.ones(groups, np.float32))
        self.constant("zeros", np.zeros(groups, np.float32))
        self.constant("border", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))

    def forward(self) -> tuple[str, int]:
        """Add the whole network, and return the name of the output and the number of values for each image."""
        config = self.config
        x = self.convolution("root_block/conv", INPUT, "stem", STEM_SIZE, 2)
        # Zeros, not −∞: there is no ReLU before, so they replace negative values at the border.
        padded = self.node("Pad", "root_block/padded", x, "border")
        x = self.node("MaxPool", "root_block", padded, kernel_shape=[3, 3], strides=[2, 2])
        for stage, depth in enumerate(config.depths):
            for layer in range(depth):
                x = self.unit(x, unit_name(stage, layer), 2 if stage and not layer else 1, layer == 0)
        x = self.norm_relu("pre_head", x, "norm")
        mean = self.node("ReduceMean", "mean", x, axes=[2, 3], keepdims=1)
        x = self.node("Flatten", "pooled", mean)
        if not config.num_labels:
            return x, config.hidden_sizes[-1]
        return self.node("Gemm", "logits", x, "head/kernel", "head/bias"), config.num_labels

    def unit(self, x: str, name: str, stride: int, projects: bool) -> str:
        activated = self.norm_relu(f"{name}/activated1", x, f"{name}/norm1")
        y = self.convolution(f"{name}/residual1", activated, f"{name}/conv1", 1, 1)
        y = self.norm_relu(f"{name}/activated2", y, f"{name}/norm2")
        y = self.convolution(f"{name}/residual2", y, f"{name}/conv2", 3, stride)
        y = self.norm_relu(f"{name}/activated3", y, f"{name}/norm3")
        y = self.convolution(f"{name}/residual3", y, f"{name}/conv3", 1, 1)
        # The shortcut is projected from the activated input, not from the raw one.
        if projects:
            x = self.convolution(f"{name}/shortcut", activated, f"{name}/projection", 1, stride)
        return self.node("Add", name, y, x)

    def convolution(self, output: str, x: str, layer: str, size: int, stride: int) -> str:
        """Add a convolution that is padded by half the kernel."""
        return self.node("Conv", output, x, f"{layer}/kernel", pads=[size // 2] * 4, strides=[stride] * 2)

    def norm_relu(self, output: str, x: str, layer: str) -> str:
        """Add group normalization and ReLU; operator sets before 21 normalize groups as instances only."""
        grouped = self.node("Reshape", f"{output}/grouped", x, "groups")
        normal = self.node("InstanceNormalization", f"{output}/normal", grouped, "ones", "zeros", epsilon=NORM_EPS)
        shape = self.node("Shape", f"{output}/shape", x)
        y = self.node("Reshape", f"{output}/normalized", normal, shape)
        y = self.node("Mul", f"{output}/scaled", y, f"{layer}/scale")
        y = self.node("Add", f"{output}/shifted", y, f"{layer}/bias")
        return self.node("Relu", output, y)

    def constant(self, name: str, value: NDArray[Any]) -> None:
        self.node("Constant", name, value=onnx.numpy_helper.from_array(value, name))

    def node(self, operator: str, output: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output
