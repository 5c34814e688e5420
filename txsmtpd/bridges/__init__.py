"""Bridges between event loops: coroutines written for asyncio, threads without a reactor, and flow control."""
