"""Docker's Engine API (1.24 to 1.47) on top of the engine: the only room that knows Docker's spelling."""
