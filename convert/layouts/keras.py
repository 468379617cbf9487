"""`bit.keras`, the `.weights.h5` that Keras 3 saves: a path of attributes, then the weight's number.

Layers in a list are called by their class, `block`, `block_1` and so on, and attributes are walked
by name: what comes after `layers`, the model's own list, is found in that first.
"""

from convert.layouts.flax import configuration
from convert.layouts.layout import Layout, Row
from convert.layouts.transformers import stated

_UNIT = "blocks/block{_stage}/units/unit{_layer}/"

KERAS = Layout(
    name="keras",
    library="Keras 3 (`bit.keras`)",
    container="h5",
    weights_name="model.weights.h5",
    ws_eps=1e-10,
    companions=configuration,
    stated=stated,
    rows={
        "stem/kernel": Row("layers/root_block/conv/vars/0", "hwio"),
        "unit/norm1/scale": Row(_UNIT + "a/norm/vars/0", "c"),
        "unit/norm1/bias": Row(_UNIT + "a/norm/vars/1", "c"),
        "unit/conv1/kernel": Row(_UNIT + "a/conv/vars/0", "hwio"),
        "unit/norm2/scale": Row(_UNIT + "b/norm/vars/0", "c"),
        "unit/norm2/bias": Row(_UNIT + "b/norm/vars/1", "c"),
        "unit/conv2/kernel": Row(_UNIT + "b/conv/vars/0", "hwio"),
        "unit/norm3/scale": Row(_UNIT + "c/norm/vars/0", "c"),
        "unit/norm3/bias": Row(_UNIT + "c/norm/vars/1", "c"),
        "unit/conv3/kernel": Row(_UNIT + "c/conv/vars/0", "hwio"),
        "unit/projection/kernel": Row(_UNIT + "a/projection/conv/vars/0", "hwio"),
        "norm/scale": Row("layers/group_norm/vars/0", "c"),
        "norm/bias": Row("layers/group_norm/vars/1", "c"),
        "head/kernel": Row("head/dense/vars/0", "cn"),
        "head/bias": Row("head/dense/vars/1", "n"),
    },
)
