"""The one error of the loader."""


class ArtifactError(Exception):
    """An artifact that is damaged or cannot run here, or inputs that do not fit it; the message says which and why."""
