"""The words of the OCI: digests, references, platforms, image and runtime documents. Pure values, no I/O."""
