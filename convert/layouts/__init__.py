"""One table a file: how each library names BiT's parameters."""

from convert.layouts.flax import FLAX
from convert.layouts.google import GOOGLE
from convert.layouts.timm import TIMM
from convert.layouts.transformers import TRANSFORMERS

LAYOUTS = {layout.name: layout for layout in (TRANSFORMERS, TIMM, GOOGLE, FLAX)}
