"""Plan a conversion and stream every tensor into a new folder."""
