"""ONNX: the network with its kernels standardized, to be run and not to be trained."""

from convert.layouts.layout import Layout, Row

_UNIT = "block{block}/unit{unit:02d}/"

ONNX = Layout(
    name="onnx",
    library="ONNX Runtime and others",
    container="onnx",
    weights_name="model.onnx",
    ws_eps=1e-10,
    profile="google",
    folded=True,
    rows={
        "stem/kernel": Row("stem/kernel", "oihw"),
        "unit/norm1/scale": Row(_UNIT + "norm1/scale", "c11"),
        "unit/norm1/bias": Row(_UNIT + "norm1/bias", "c11"),
        "unit/conv1/kernel": Row(_UNIT + "conv1/kernel", "oihw"),
        "unit/norm2/scale": Row(_UNIT + "norm2/scale", "c11"),
        "unit/norm2/bias": Row(_UNIT + "norm2/bias", "c11"),
        "unit/conv2/kernel": Row(_UNIT + "conv2/kernel", "oihw"),
        "unit/norm3/scale": Row(_UNIT + "norm3/scale", "c11"),
        "unit/norm3/bias": Row(_UNIT + "norm3/bias", "c11"),
        "unit/conv3/kernel": Row(_UNIT + "conv3/kernel", "oihw"),
        "unit/projection/kernel": Row(_UNIT + "projection/kernel", "oihw"),
        "norm/scale": Row("norm/scale", "c11"),
        "norm/bias": Row("norm/bias", "c11"),
        "head/kernel": Row("head/kernel", "cn"),
        "head/bias": Row("head/bias", "n"),
    },
)
