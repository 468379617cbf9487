"""google-research/big_transfer, the `.npz` files (bit_pytorch/models.py, `load_from`).

Some published files number their convolutions, `standardized_conv2d_17/kernel`.
"""

from convert.layouts.layout import Layout, Row

NUMBERED = {r"(?<=conv2d|p_norm)_[0-9]+(?=/)": ""}

_UNIT = "resnet/block{block}/unit{unit:02d}/"

GOOGLE = Layout(
    name="google",
    library="google-research/big_transfer, PyTorch and TF1",
    container="npz",
    weights_name="{name}.npz",
    ws_eps=1e-10,
    labelled=False,
    spellings=NUMBERED,
    rows={
        "stem/kernel": Row("resnet/root_block/standardized_conv2d/kernel", "hwio"),
        "unit/norm1/scale": Row(_UNIT + "a/group_norm/gamma", "c"),
        "unit/norm1/bias": Row(_UNIT + "a/group_norm/beta", "c"),
        "unit/conv1/kernel": Row(_UNIT + "a/standardized_conv2d/kernel", "hwio"),
        "unit/norm2/scale": Row(_UNIT + "b/group_norm/gamma", "c"),
        "unit/norm2/bias": Row(_UNIT + "b/group_norm/beta", "c"),
        "unit/conv2/kernel": Row(_UNIT + "b/standardized_conv2d/kernel", "hwio"),
        "unit/norm3/scale": Row(_UNIT + "c/group_norm/gamma", "c"),
        "unit/norm3/bias": Row(_UNIT + "c/group_norm/beta", "c"),
        "unit/conv3/kernel": Row(_UNIT + "c/standardized_conv2d/kernel", "hwio"),
        "unit/projection/kernel": Row(_UNIT + "a/proj/standardized_conv2d/kernel", "hwio"),
        "norm/scale": Row("resnet/group_norm/gamma", "c"),
        "norm/bias": Row("resnet/group_norm/beta", "c"),
        "head/kernel": Row("resnet/head/conv2d/kernel", "11cn"),
        "head/bias": Row("resnet/head/conv2d/bias", "n"),
    },
)
