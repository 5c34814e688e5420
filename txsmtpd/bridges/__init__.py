"""Bridges between event loops: coroutines written for asyncio, and threads without a reactor."""
