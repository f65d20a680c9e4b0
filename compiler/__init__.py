"""qcompile: neural networks as integer-only programs."""
