"""The letter box: HTTP/1.1 over asyncio with h11, routing and hijacking. Knows no container and no domain type."""
