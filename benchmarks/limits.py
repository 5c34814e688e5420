"""Measure one decision of a rate limit, and check that a million addresses do not exceed the size of its table.

``python benchmarks/limits.py``: the processor time of a decision, the best of five runs, and the size of the table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from txsmtpd.limits import Limits
from txsmtpd.limits.networks import networks_of

ADDRESSES = 1_000_000
DECISIONS = 200_000


def addresses() -> list[str]:
    return [f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}" for number in range(ADDRESSES)]


def microseconds(decide: Callable[[str], object], keys: Sequence[str]) -> float:
    """The processor time of one decision: the best of five runs over the keys."""
    best = float("inf")
    for _ in range(5):
        begin = time.process_time()
        for key in keys:
            decide(key)
        best = min(best, (time.process_time() - begin) / len(keys))
    return best * 1e6


def main() -> None:
    limits = Limits({"messages": "100/min,burst=20"})

    def admit(key: str) -> object:
        return limits.admit("messages", key)

    clients = addresses()
    print(f"one address       {microseconds(admit, ['192.0.2.7'] * DECISIONS):5.2f} us a decision")
    print(f"100,000 addresses {microseconds(admit, clients[:100_000]):5.2f} us a decision")
    print(f"1,000,000         {microseconds(admit, clients):5.2f} us a decision")
    table = limits.buckets["messages"]
    print(f"keys in the table {len(table)}; forgotten although they still had to wait: {table.forgotten}")
    network_of = networks_of()
    print(f"network of IPv4   {microseconds(network_of, ['192.0.2.7'] * DECISIONS):5.2f} us")
    print(f"network of IPv6   {microseconds(network_of, ['2001:db8:1:2:3:4:5:6'] * DECISIONS):5.2f} us")


if __name__ == "__main__":
    main()
