"""What runs artifacts: the C shim and header, the Python loader, the emulators."""
