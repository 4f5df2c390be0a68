"""Becomes the container. Standard library only, one thread, no asyncio: what is imported here is paid per container."""
