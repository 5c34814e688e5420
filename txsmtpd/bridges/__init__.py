"""Bridges between event loops: coroutines written for asyncio, and threads that have no reactor of their own."""
