"""Mixed precision: which layer can do with fewer bits."""
