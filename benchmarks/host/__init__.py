"""The parts of bench.py: what is measured on this machine."""
