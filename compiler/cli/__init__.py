"""The commands: qcompile, qrun, qbench."""
