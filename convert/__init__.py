"""Convert BiT weights between libraries and prove that nothing changed."""

__version__ = "0.1.0"
