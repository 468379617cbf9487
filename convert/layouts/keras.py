"""`bit.keras`, the `.weights.h5` that Keras 3 saves: a path of attributes, then the weight's number.

Keras names layers in a list after their class: `block`, `block_1` and so on. It visits attributes in
alphabetical order, so weights that come after `layers`, the model's own list, are stored in that list.
"""

from convert.layouts.flax import CHANNELS_LAST, configuration
from convert.layouts.layout import Export, Layout, Row
from convert.layouts.transformers import stated

_UNIT = "blocks/block{_stage}/units/unit{_layer}/"

KERAS = Layout(
    name="keras",
    ws_eps=1e-10,
    reads_ws_eps=True,
    rows={
        "stem/kernel": Row("layers/root_block/conv/vars/0", "hwio"),
        "unit/norm{n}/scale": Row(_UNIT + "{abc}/norm/vars/0", "c"),
        "unit/norm{n}/bias": Row(_UNIT + "{abc}/norm/vars/1", "c"),
        "unit/conv{n}/kernel": Row(_UNIT + "{abc}/conv/vars/0", "hwio"),
        "unit/projection/kernel": Row(_UNIT + "a/projection/conv/vars/0", "hwio"),
        "norm/scale": Row("layers/group_norm/vars/0", "c"),
        "norm/bias": Row("layers/group_norm/vars/1", "c"),
        "head/kernel": Row("head/dense/vars/0", "cn"),
        "head/bias": Row("head/dense/vars/1", "n"),
    },
    export=Export(
        library="Keras 3 (`bit.keras`)",
        container="h5",
        weights_name="model.weights.h5",
        loading='import bit.keras\nmodel = bit.keras.load("{folder}")',
        classify="import keras\n" + CHANNELS_LAST + "output = keras.ops.convert_to_numpy(model(pixels))",
        labels="model.config.id2label",
        install="keras tensorflow pillow",
        profile="google",
        companions=configuration,
        stated=stated,
    ),
)
