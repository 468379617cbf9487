"""Files of named arrays, one container a module: arrays are read in place, files are written whole or not at all."""
