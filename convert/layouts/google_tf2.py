"""google-research/big_transfer, the `.h5` files of the TF2 code (bit_tf2/models.py), as Keras 2 wrote them.

Keras 2 keeps each layer of the model in a group, and the weights of the layer in that group under their
full names. `load_weights` reads `layer_names` and `weight_names`, so their order is that of the code.
"""

from collections.abc import Sequence

from convert.layouts.google import IN_NUMPY, NUMBERED
from convert.layouts.layout import Attributes, Export, Layout, Row

OTHER_VERSIONS = {
    r"^(root_block|block[0-9]+|group_norm|head/dense)/resnet/": r"\1/",
    r"^(block[0-9]+)/(?=unit)": r"\1/\1/",
    r"^root_block/(?=standardized_conv2d)": "root_block/root_block/",
}
"""TensorFlow 2.1 and 2.2 put the model's name, `resnet`, before a weight's name if the model was called
before it was built; TensorFlow 2.3 leaves the layer's name out."""

LAST = ("group_norm", "re_lu", "global_average_pooling2d", "head/dense")
"""The layers after the blocks. The ReLU and the pooling have no weights."""


def _attributes(keys: Sequence[str]) -> Attributes:
    weights: dict[str, list[str]] = {}
    for key in keys:
        layer = "head/dense" if key.startswith("head/") else key.split("/")[0]
        weights.setdefault(layer, []).append(key.removeprefix(f"{layer}/"))
    layers = [layer for layer in weights if layer not in LAST]
    layers += [layer for layer in LAST if layer != "head/dense" or layer in weights]
    root = {"layer_names": layers, "backend": "tensorflow", "keras_version": "2.3.0-tf"}
    return {"/": root, **{layer: {"weight_names": weights.get(layer, [])} for layer in layers}}


_UNIT = "block{block}/block{block}/unit{unit:02d}/"

GOOGLE_TF2 = Layout(
    name="google-tf2",
    ws_eps=1e-10,
    spellings={**NUMBERED, **OTHER_VERSIONS},
    rows={
        "stem/kernel": Row("root_block/root_block/standardized_conv2d/kernel:0", "hwio"),
        "unit/norm{n}/scale": Row(_UNIT + "{abc}/group_norm/gamma:0", "c"),
        "unit/norm{n}/bias": Row(_UNIT + "{abc}/group_norm/beta:0", "c"),
        "unit/conv{n}/kernel": Row(_UNIT + "{abc}/standardized_conv2d/kernel:0", "hwio"),
        "unit/projection/kernel": Row(_UNIT + "a/proj/standardized_conv2d/kernel:0", "hwio"),
        "norm/scale": Row("group_norm/group_norm/gamma:0", "c"),
        "norm/bias": Row("group_norm/group_norm/beta:0", "c"),
        "head/kernel": Row("head/dense/head/dense/kernel:0", "cn"),
        "head/bias": Row("head/dense/head/dense/bias:0", "n"),
    },
    export=Export(
        library="google-research/big_transfer, TF2 (Keras 2)",
        container="h5",
        weights_name="{name}.h5",
        loading="import h5py\n"
        'weights = h5py.File("{folder}/{name}.h5")  # for load_weights of big_transfer\'s bit_tf2.models.ResnetV2',
        classify=IN_NUMPY,
        standalone=True,
        labels="checkpoint.config.id2label",
        install="pillow",
        labelled=False,
        attributes=_attributes,
    ),
)
