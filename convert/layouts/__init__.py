"""One table a file: how each library names BiT's parameters."""

from convert.layouts.flax import FLAX
from convert.layouts.google import GOOGLE
from convert.layouts.google_tf2 import GOOGLE_TF2
from convert.layouts.keras import KERAS
from convert.layouts.onnx import ONNX
from convert.layouts.timm import TIMM
from convert.layouts.transformers import TRANSFORMERS

LAYOUTS = {layout.name: layout for layout in (TRANSFORMERS, TIMM, GOOGLE, GOOGLE_TF2, FLAX, KERAS, ONNX)}
READABLE = {name: layout for name, layout in LAYOUTS.items() if not layout.folded}
