"""An opened checkpoint, the architecture in it, and the manifest of the conversion that wrote it."""
