"""The layouts: how each library names BiT's parameters, one table a file."""

from convert.errors import check_choice
from convert.layouts.flax import FLAX
from convert.layouts.google import GOOGLE
from convert.layouts.google_tf2 import GOOGLE_TF2
from convert.layouts.keras import KERAS
from convert.layouts.keras_saved import KERAS_SAVED
from convert.layouts.layout import Layout
from convert.layouts.onnx import ONNX
from convert.layouts.timm import TIMM
from convert.layouts.transformers import TRANSFORMERS

LAYOUTS = {layout.name: layout for layout in (TRANSFORMERS, TIMM, GOOGLE, GOOGLE_TF2, FLAX, KERAS, KERAS_SAVED, ONNX)}
READABLE = {name: layout for name, layout in LAYOUTS.items() if not layout.folded}


def find(name: str) -> Layout:
    """Return the layout of that name. Raises `UsageError` if there is none."""
    check_choice("layout", name, LAYOUTS)
    return LAYOUTS[name]
