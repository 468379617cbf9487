"""Sign a converted folder, attest what was verified, and check both."""
