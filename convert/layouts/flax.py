"""google-research/big_transfer in JAX (bit_jax/models.py): names joined by `/`, norms `[1, 1, 1, c]`."""

from typing import Any

from bit.config import CONFIG_NAME, BitConfig
from bit.image_processing import PREPROCESSOR_NAME
from convert.layouts.layout import Export, Layout, Row
from convert.layouts.transformers import stated
from convert.published.preprocessing import preprocessor


def configuration(config: BitConfig, dtype: str, name: str, profile: str) -> dict[str, dict[str, Any]]:
    """Return the `config.json` from which `bit.flax` and `bit.keras` build their models, and the preprocessing."""
    return {CONFIG_NAME: {**config.to_dict(), "dtype": dtype}, PREPROCESSOR_NAME: preprocessor(profile, name)}


CHANNELS_LAST = """\
from bit import BitImageProcessorPil
processor = BitImageProcessorPil.from_pretrained("{folder}")
pixels = processor(image, data_format="channels_last", return_tensors="np")["pixel_values"]
"""
"""Python that prepares an image for a network with the channels last."""


_UNIT = "block{block}/unit{unit:02d}/"

FLAX = Layout(
    name="flax",
    ws_eps=1e-10,
    reads_ws_eps=True,
    spellings={r"^head/": "conv_head/"},  # as in big_vision (models/bit_paper.py)
    rows={
        "stem/kernel": Row("root_block/conv_root/kernel", "hwio"),
        "unit/norm{n}/scale": Row(_UNIT + "gn{n}/scale", "111c"),
        "unit/norm{n}/bias": Row(_UNIT + "gn{n}/bias", "111c"),
        "unit/conv{n}/kernel": Row(_UNIT + "conv{n}/kernel", "hwio"),
        "unit/projection/kernel": Row(_UNIT + "conv_proj/kernel", "hwio"),
        "norm/scale": Row("norm-pre-head/scale", "111c"),
        "norm/bias": Row("norm-pre-head/bias", "111c"),
        "head/kernel": Row("conv_head/kernel", "cn"),
        "head/bias": Row("conv_head/bias", "n"),
    },
    export=Export(
        library="google-research/big_transfer, JAX (`bit.flax`)",
        container="safetensors",
        loading='import bit.flax\nmodel = bit.flax.load("{folder}")',
        classify=CHANNELS_LAST + "output = model(pixels)",
        labels="model.config.id2label",
        install="jax flax pillow",
        profile="google",
        companions=configuration,
        stated=stated,
    ),
)
