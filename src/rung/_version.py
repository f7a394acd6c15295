"""The version of the package; `pyproject.toml` names the same one."""

__version__ = "0.1.0"
