"""Whether unicorn can run an artifact; asked before unicorn is imported, which a device need not have."""

from importlib.util import find_spec

from qcompile.runtime.manifest import CpuManifest

_NOT_EMULATED = ("i8mm",)


def why_not_unicorn(manifest: CpuManifest) -> str | None:
    """Why unicorn cannot run the artifact, or None where it can."""
    if manifest.arch != "aarch64":
        return f"only aarch64 is emulated, not {manifest.arch}"
    missing = [flag for flag in _NOT_EMULATED if flag in manifest.cpu_flags]
    if missing:
        return f"unicorn does not emulate {', '.join(missing)}"
    return None if find_spec("unicorn") else "unicorn is not installed: pip install 'qcompile[emulation]'"
