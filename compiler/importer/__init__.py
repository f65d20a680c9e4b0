"""QDQ ONNX to Relax: TVM's frontend, with converters of ours where it writes more than we can read."""

from qcompile.importer.operators import is_importable
from qcompile.importer.relax_import import Imported, import_onnx

__all__ = ["Imported", "import_onnx", "is_importable"]
