"""google-research/big_transfer, the `.npz` files (bit_pytorch/models.py, `load_from`)."""

from convert.layouts.layout import Export, Layout, Row

NUMBERED = {r"(?<=conv2d|p_norm)_[0-9]+(?=/)": ""}
"""Some published files number their convolutions, as in `standardized_conv2d_17/kernel`."""

IN_NUMPY = """\
from pathlib import Path
from bit import BitImageProcessorPil
from convert.checkpoints.checkpoint import Checkpoint
from convert.network.runner import run_network
processor = BitImageProcessorPil({settings})
pixels = processor(image, data_format="channels_last", return_tensors="np")["pixel_values"]
with Checkpoint(Path("{folder}")) as checkpoint:
    *_, (_, outputs) = run_network(checkpoint.oracle(), checkpoint.config, {"image": pixels})
output = outputs["image"]"""
"""Python that runs the weights without a framework; Google's own code does not load a folder by itself."""

_UNIT = "resnet/block{block}/unit{unit:02d}/"

GOOGLE = Layout(
    name="google",
    ws_eps=1e-10,
    spellings=NUMBERED,
    rows={
        "stem/kernel": Row("resnet/root_block/standardized_conv2d/kernel", "hwio"),
        "unit/norm{n}/scale": Row(_UNIT + "{abc}/group_norm/gamma", "c"),
        "unit/norm{n}/bias": Row(_UNIT + "{abc}/group_norm/beta", "c"),
        "unit/conv{n}/kernel": Row(_UNIT + "{abc}/standardized_conv2d/kernel", "hwio"),
        "unit/projection/kernel": Row(_UNIT + "a/proj/standardized_conv2d/kernel", "hwio"),
        "norm/scale": Row("resnet/group_norm/gamma", "c"),
        "norm/bias": Row("resnet/group_norm/beta", "c"),
        "head/kernel": Row("resnet/head/conv2d/kernel", "11cn"),
        "head/bias": Row("resnet/head/conv2d/bias", "n"),
    },
    export=Export(
        library="google-research/big_transfer, PyTorch and TF1",
        container="npz",
        weights_name="{name}.npz",
        loading="import numpy\n"
        'weights = numpy.load("{folder}/{name}.npz")  # for load_from of big_transfer\'s bit_pytorch.models.ResNetV2',
        classify=IN_NUMPY,
        standalone=True,
        labels="checkpoint.config.id2label",
        install="pillow",
        labelled=False,
    ),
)
