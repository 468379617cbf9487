"""Containers of named arrays, one a file: read where they lie, written whole or not at all."""
