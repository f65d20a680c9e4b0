"""Loads and runs artifacts; needs nothing of the compiler."""

from qcompile.runtime.errors import ArtifactError
from qcompile.runtime.manifest import Manifest, Tensor
from qcompile.runtime.model import Model, load
from qcompile.runtime.stream import Stream

__all__ = ["ArtifactError", "Manifest", "Model", "Stream", "Tensor", "load"]
