"""The memory for messages: what counts, which message may continue, and the default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.limits import Memory, memory
from txsmtpd.limits.memory import Share
from txsmtpd.service.options import Options
from txsmtpd.settings import Settings


class MemoryTests(SynchronousTestCase):
    """Shares of a memory of 400 bytes, of which 100 are reserved."""

    def setUp(self) -> None:
        self.memory = Memory(400)
        self.woken: list[int] = []

    def share(self, octets: int) -> Share:
        share = self.memory.share()
        if not share.add(octets):
            share.wait(lambda: self.woken.append(share.number))
        return share

    def test_counts(self) -> None:
        """The memory of messages is counted, and released once."""
        first, second = self.share(100), self.share(150)
        self.assertEqual(self.memory.used, 250)
        first.release()
        first.release()
        self.assertEqual(self.memory.used, 150)
        second.release()
        self.assertEqual(self.memory.used, 0)

    def test_reserve(self) -> None:
        """Beyond three quarters, one message continues up to the limit, and the others wait."""
        first, second = self.share(300), self.memory.share()
        self.assertTrue(first.add(50))
        self.assertFalse(second.add(60))
        self.assertTrue(first.add(50))
        self.assertTrue(first.add(50))
        self.assertFalse(first.add(1))
        second.release()
        self.assertFalse(first.add(1))

    def test_oldestFirst(self) -> None:
        """When there is room, the messages continue in the order in which they started."""
        shares = [self.share(90) for _ in range(6)]
        self.assertEqual(self.memory.waiting, 2)
        self.assertEqual(self.woken, [])
        shares[3].release()  # this share had the reserve
        self.assertEqual(self.woken, [4])
        shares[0].release()
        self.assertEqual(self.woken, [4])
        shares[1].release()
        self.assertEqual(self.woken, [4, 5])

    def test_wakingAndReleasing(self) -> None:
        """A message that continues may release all its memory: thousands do so in turn."""
        first = self.share(400)
        shares = [self.memory.share() for _ in range(5000)]
        for share in shares:
            share.add(1)
            share.wait(share.release)
        first.release()
        while self.memory.waiting and shares:
            shares.pop().release()
        self.assertEqual((self.memory.used, self.memory.waiting), (0, 0))

    def test_unlimited(self) -> None:
        """None is no limit."""
        share = Memory(None).share()
        self.assertTrue(share.add(2**50))


class DefaultTests(SynchronousTestCase):
    """The default limit."""

    def cgroups(self, **limits: str) -> None:
        folder = Path(self.mktemp())
        group = folder / "system.slice" / "smtp.service"
        group.mkdir(parents=True)
        for name, text in limits.items():
            where = group if name.startswith("own_") else group.parent
            (where / name.removeprefix("own_").replace("_", ".")).write_text(text)
        self.patch(memory, "CGROUP", folder)
        self.found = memory._limits_of_cgroups(group)

    def test_controlGroups(self) -> None:
        """The limits of the control group and of its parents apply."""
        self.cgroups(own_memory_max="max\n", own_memory_high="268435456\n", memory_max="1073741824\n")
        self.assertEqual(self.found, [2**28, 2**30])

    def test_noControlGroups(self) -> None:
        """There may be no control group."""
        self.patch(memory, "CGROUP", Path(self.mktemp()))
        self.assertEqual(memory._limits_of_cgroups(memory._own_cgroup()), [])
        self.assertGreater(memory.memory_of_machine.__wrapped__(), 2**20)

    def test_settings(self) -> None:
        """It is a quarter of the machine's memory, but at least four times the largest message."""
        self.patch(memory, "memory_of_machine", lambda: 2**30)
        self.assertEqual(make().memory.limit, 2**28)
        self.assertEqual(make(data_size_limit=2**28).memory.limit, 2**30)

    def test_given(self) -> None:
        """It may be a number, None, or a Memory that several factories share."""
        self.assertEqual(make(memory_limit=2**27).memory.limit, 2**27)
        self.assertGreater(make(memory_limit=None).memory.limit, 2**60)
        shared = Memory(2**30)
        self.assertIs(make(memory_limit=shared).memory, shared)
        self.assertIsNot(make().memory, make().memory)

    def test_mistakes(self) -> None:
        """A limit below four times the largest message is refused. So is a value that is not a number."""
        self.assertIn("134217728", str(self.assertRaises(ValueError, make, memory_limit=1000)))
        self.assertRaises(ValueError, make, memory_limit=0, data_size_limit=None)
        for value in ("much", 1.5, True, b"1"):
            self.assertIn("memory_limit", str(self.assertRaises(TypeError, make, memory_limit=value)))

    def test_commandLine(self) -> None:
        """All listeners of the command line share one memory."""
        self.assertEqual(self.chosen("--memory-limit=1G").limit, 2**30)
        self.assertEqual(self.chosen("--memory-limit=4MiB", "--size=1MiB").limit, 2**22)
        self.assertGreater(self.chosen("--memory-limit=none").limit, 2**60)

    def chosen(self, *words: str) -> Memory:
        options = Options()
        options.parseOptions(["--handler=sink", *words])
        found: Memory = options["settings"]["memory_limit"]
        return found


def make(**options: Any) -> Settings:
    return Settings.make(None, {"reactor": Clock(), **options})
