"""Relax-to-Relax passes, one a file."""
