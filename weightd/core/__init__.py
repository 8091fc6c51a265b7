"""Pure decisions: no sockets, files, threads, asyncio or clock. The time of day is an argument."""
