"""google-research/big_transfer, the `.h5` files of its TF2 code (bit_tf2/models.py), as Keras 2 wrote them.

Keras 2 keeps each layer of the model in a group, and in it the layer's weights under their full
names; `load_weights` walks `layer_names` and `weight_names`, so their order is that of the code.
"""

from collections.abc import Sequence

from convert.layouts.google import NUMBERED
from convert.layouts.layout import Attributes, Layout, Row

BUILT_OTHERWISE = {
    r"^(root_block|block[0-9]+|group_norm|head/dense)/resnet/": r"\1/",
    r"^(block[0-9]+)/(?=unit)": r"\1/\1/",
    r"^root_block/(?=standardized_conv2d)": "root_block/root_block/",
}
"""TensorFlow 2.1 and 2.2 put the model's name, `resnet`, before a weight's if the model was called
before it was built, and 2.3 leaves the layer's out."""

LAST = ("group_norm", "re_lu", "global_average_pooling2d", "head/dense")
"""The layers after the blocks. A ReLU and a pooling have no weights."""


def _attributes(keys: Sequence[str]) -> Attributes:
    layers = [layer for layer in dict.fromkeys(map(_layer, keys)) if layer not in LAST]
    layers += [layer for layer in LAST if layer != "head/dense" or any(_layer(key) == layer for key in keys)]
    names = {layer: [key.removeprefix(f"{layer}/") for key in keys if _layer(key) == layer] for layer in layers}
    root = {"layer_names": layers, "backend": "tensorflow", "keras_version": "2.3.0-tf"}
    return {"/": root, **{layer: {"weight_names": names[layer]} for layer in layers}}


def _layer(key: str) -> str:
    first = key.split("/")[0]
    return "head/dense" if first == "head" else first


_UNIT = "block{block}/block{block}/unit{unit:02d}/"

GOOGLE_TF2 = Layout(
    name="google-tf2",
    library="google-research/big_transfer, TF2 (Keras 2)",
    container="h5",
    weights_name="{name}.h5",
    ws_eps=1e-10,
    labelled=False,
    spellings={**NUMBERED, **BUILT_OTHERWISE},
    attributes=_attributes,
    rows={
        "stem/kernel": Row("root_block/root_block/standardized_conv2d/kernel:0", "hwio"),
        "unit/norm1/scale": Row(_UNIT + "a/group_norm/gamma:0", "c"),
        "unit/norm1/bias": Row(_UNIT + "a/group_norm/beta:0", "c"),
        "unit/conv1/kernel": Row(_UNIT + "a/standardized_conv2d/kernel:0", "hwio"),
        "unit/norm2/scale": Row(_UNIT + "b/group_norm/gamma:0", "c"),
        "unit/norm2/bias": Row(_UNIT + "b/group_norm/beta:0", "c"),
        "unit/conv2/kernel": Row(_UNIT + "b/standardized_conv2d/kernel:0", "hwio"),
        "unit/norm3/scale": Row(_UNIT + "c/group_norm/gamma:0", "c"),
        "unit/norm3/bias": Row(_UNIT + "c/group_norm/beta:0", "c"),
        "unit/conv3/kernel": Row(_UNIT + "c/standardized_conv2d/kernel:0", "hwio"),
        "unit/projection/kernel": Row(_UNIT + "a/proj/standardized_conv2d/kernel:0", "hwio"),
        "norm/scale": Row("group_norm/group_norm/gamma:0", "c"),
        "norm/bias": Row("group_norm/group_norm/beta:0", "c"),
        "head/kernel": Row("head/dense/head/dense/kernel:0", "cn"),
        "head/bias": Row("head/dense/head/dense/bias:0", "n"),
    },
)
