"""Load a Jinja template that lies in one of the packages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template


def template(package: str, name: str, filters: Mapping[str, Callable[..., Any]], **options: Any) -> Template:
    """Return a package's template. A missing value is an error; `options` are those of `jinja2.Environment`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, ""),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        **options,
    )
    environment.filters |= filters
    return environment.get_template(name)
