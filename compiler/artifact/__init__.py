"""The CPU artifact: linked, proved, written."""

from qcompile.artifact.folder import Artifact, build_artifact
from qcompile.artifact.proof import Proof, prove
from qcompile.artifact.replace import write_folder
from qcompile.artifact.spec import ArtifactSpec, TensorInfo, c_identifier

__all__ = ["Artifact", "ArtifactSpec", "Proof", "TensorInfo", "build_artifact", "c_identifier", "prove", "write_folder"]
