"""Docker's semantics: what a container is, when it may change, who watches it. Knows no HTTP and no syscall by name."""
