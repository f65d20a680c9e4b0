"""Counting what ARM code executes, and estimating its cycles, on a machine that is no ARM."""
