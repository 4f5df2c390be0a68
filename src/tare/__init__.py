"""tare: a container engine in Python, a drop-in for Docker. The map of its rooms is ARCHITECTURE.md."""
