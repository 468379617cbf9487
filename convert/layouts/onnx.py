"""ONNX: the network with standardized kernels, for inference and not for training."""

from bit.image_processing import PREPROCESSOR_NAME
from convert.layouts.layout import Export, Layout, Row
from convert.published.preprocessing import preprocessor

_UNIT = "block{block}/unit{unit:02d}/"

ONNX = Layout(
    name="onnx",
    ws_eps=1e-10,
    folded=True,
    rows={
        "stem/kernel": Row("stem/kernel", "oihw"),
        "unit/norm{n}/scale": Row(_UNIT + "norm{n}/scale", "c11"),
        "unit/norm{n}/bias": Row(_UNIT + "norm{n}/bias", "c11"),
        "unit/conv{n}/kernel": Row(_UNIT + "conv{n}/kernel", "oihw"),
        "unit/projection/kernel": Row(_UNIT + "projection/kernel", "oihw"),
        "norm/scale": Row("norm/scale", "c11"),
        "norm/bias": Row("norm/bias", "c11"),
        "head/kernel": Row("head/kernel", "cn"),
        "head/bias": Row("head/bias", "n"),
    },
    export=Export(
        library="ONNX Runtime and others",
        container="onnx",
        weights_name="model.onnx",
        loading='import onnxruntime\nsession = onnxruntime.InferenceSession("{folder}/model.onnx")',
        classify="import json\n"
        "from bit import BitImageProcessorPil\n"
        'processor = BitImageProcessorPil.from_pretrained("{folder}")\n'
        'pixels = processor(image, return_tensors="np")["pixel_values"].astype(np.float32)\n'
        '(output,) = session.run(None, {"pixel_values": pixels})\n'
        "properties = session.get_modelmeta().custom_metadata_map",
        labels='json.loads(properties.get("labels", "null"))',
        install="onnxruntime pillow",
        companions=lambda config, dtype, name, profile: {PREPROCESSOR_NAME: preprocessor(profile, name)},
        profile="google",
    ),
)
