"""A verification as text for the terminal and as one HTML page."""
