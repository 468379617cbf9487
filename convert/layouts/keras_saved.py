"""Keras: the network with standardized kernels in Keras' own layers, for inference and not for training.

In a `.keras` file Keras names the layers of a model after their class: `conv2d`, `conv2d_1` and so on, in the order of
the graph. Stages are models in the model, and units models in these; their class is `Functional`.
"""

from convert.layouts.flax import CHANNELS_LAST, configuration
from convert.layouts.layout import Export, Layout, Row
from convert.layouts.transformers import stated

_UNIT = "layers/functional{_stage}/layers/functional{_layer}/layers/"

KERAS_SAVED = Layout(
    name="keras-saved",
    ws_eps=1e-10,
    folded=True,
    rows={
        "stem/kernel": Row("layers/conv2d/vars/0", "hwio"),
        "unit/norm1/scale": Row(_UNIT + "group_normalization/vars/0", "c"),
        "unit/norm1/bias": Row(_UNIT + "group_normalization/vars/1", "c"),
        "unit/conv1/kernel": Row(_UNIT + "conv2d/vars/0", "hwio"),
        "unit/norm2/scale": Row(_UNIT + "group_normalization_1/vars/0", "c"),
        "unit/norm2/bias": Row(_UNIT + "group_normalization_1/vars/1", "c"),
        "unit/conv2/kernel": Row(_UNIT + "conv2d_1/vars/0", "hwio"),
        "unit/norm3/scale": Row(_UNIT + "group_normalization_2/vars/0", "c"),
        "unit/norm3/bias": Row(_UNIT + "group_normalization_2/vars/1", "c"),
        "unit/conv3/kernel": Row(_UNIT + "conv2d_2/vars/0", "hwio"),
        "unit/projection/kernel": Row(_UNIT + "conv2d_3/vars/0", "hwio"),
        "norm/scale": Row("layers/group_normalization/vars/0", "c"),
        "norm/bias": Row("layers/group_normalization/vars/1", "c"),
        "head/kernel": Row("layers/dense/vars/0", "cn"),
        "head/bias": Row("layers/dense/vars/1", "n"),
    },
    export=Export(
        library="Keras 3",
        container="keras",
        weights_name="model.keras",
        loading='import keras\nmodel = keras.saving.load_model("{folder}/model.keras")',
        classify="from bit import BitConfig\n" + CHANNELS_LAST + "output = keras.ops.convert_to_numpy(model(pixels))",
        labels='BitConfig.from_pretrained("{folder}").id2label',
        install="keras tensorflow pillow",
        companions=configuration,
        profile="google",
        stated=stated,
    ),
)
