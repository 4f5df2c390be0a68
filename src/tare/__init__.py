"""tare: a container engine in Python, a drop-in for Docker. The map of its rooms is ARCHITECTURE.md."""

__version__ = "0.1.0"
"""The same as in pyproject.toml; a test compares them."""
