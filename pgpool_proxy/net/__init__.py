"""The shell: sockets and tasks. The only asyncio in the data path."""
