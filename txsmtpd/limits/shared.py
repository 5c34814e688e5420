"""Limits shared by several hosts, in Redis (the extra ``redis``).

Limits per account are shared: the rates of authenticated clients, and failed logins. Each host counts networks for
itself. A decision is one script in Redis. If Redis is unavailable or takes more than 50 ms, the limits of this process
decide instead, so no client is rejected because Redis is down.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote, urlsplit

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectError
from twisted.logger import Logger
from twisted.python.failure import Failure

from txsmtpd.limits.breaker import Breaker
from txsmtpd.limits.limiter import AUTH, LOGIN, Limits
from txsmtpd.limits.rate import Retry
from txsmtpd.log.reasons import reason_of

log = Logger(namespace="txsmtpd")

PREFIX = "txsmtpd:"
PATIENCE = 0.05  # seconds for a decision

# The algorithm of `buckets`, with the time of Redis, so that the hosts' clocks do not matter.
_RATE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local interval, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local paid = tonumber(redis.call('GET', KEYS[1]) or now)
if paid < now then paid = now end
paid = paid + interval
local excess = paid - now - window
if excess > 0.000001 then return string.format('%.6f', excess) end
redis.call('SET', KEYS[1], string.format('%.6f', paid), 'PX', math.ceil((paid - now) * 1000))
return false
"""

# The algorithm of `names`. The names of a network are a sorted set, by the time of their last failure.
_MAY_TRY = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local most, period = tonumber(ARGV[1]), tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - period)
if redis.call('ZCARD', KEYS[1]) < most then return false end
local oldest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return string.format('%.6f', oldest[2] + period - now)
"""
_FAILED = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local most, period = tonumber(ARGV[1]), tonumber(ARGV[2])
redis.call('ZADD', KEYS[1], now, ARGV[3])
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -most - 1)
redis.call('PEXPIRE', KEYS[1], math.ceil(period * 1000))
local count = redis.call('INCR', KEYS[2])
redis.call('PEXPIRE', KEYS[2], math.ceil(period * 1000))
return count
"""


class SharedLimits:
    """An :class:`~txsmtpd.interfaces.ILimiter` that shares the limits of accounts with other hosts.

    :param local: the limits of this process. Its rates are also the shared ones. It decides about networks, and about
        everything while Redis does not answer.
    :param connect: makes a ``txredisapi`` connection for the first decision; see :func:`connect`.
    :param clock: provides the time (IReactorTime).
    :param prefix: the prefix of the keys in Redis.
    """

    def __init__(
        self,
        local: Limits,
        connect: Callable[[], Any],
        clock: Any,
        *,
        prefix: str = PREFIX,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self.local = local
        self.errors = 0  #: number of decisions without Redis, because of errors
        self._connect = connect
        self._connection: Any = None
        self._clock = clock
        self._prefix = prefix
        self._seconds = seconds
        self._breaker = Breaker()

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds that have a limit."""
        return self.local.kinds

    @property
    def forgotten(self) -> int:
        """The number of keys that the limits of this process removed early, because a table was full."""
        return self.local.forgotten

    def admit(self, kind: str, key: str) -> Retry | Awaitable[Retry | None] | None:
        """Decide whether the key is admitted."""
        if kind == AUTH:
            if self.local.failures is None:
                return None
            rate = self.local.failures.rate
            answer = self._ask(_MAY_TRY, [f"names:{key}"], [rate.number, rate.period], _retry)
        else:
            buckets = self.local.buckets.get(kind)
            if buckets is None or not key.startswith(LOGIN):
                return self.local.admit(kind, key)
            interval = buckets.rate.period / buckets.rate.number
            shared_key = f"{kind}:{LOGIN}{_hashed(key.removeprefix(LOGIN))}"
            answer = self._ask(_RATE, [shared_key], [interval, interval * buckets.rate.burst], _retry)
        if answer is None:
            return self.local.admit(kind, key)
        return answer.addErrback(lambda failure: self.local.admit(kind, key))

    def auth_failed(self, network: str, name: str) -> int | Awaitable[int]:
        """Record a failed login of a client in the network."""
        if self.local.failures is None:
            return 1
        rate = self.local.failures.rate
        hashed = _hashed(name)
        keys = [f"names:{network}", f"name:{hashed}"]
        answer = self._ask(_FAILED, keys, [rate.number, rate.period, hashed], int)
        if answer is None:
            return self.local.auth_failed(network, name)
        return answer.addErrback(lambda failure: self.local.auth_failed(network, name))

    def _ask(
        self, script: str, keys: list[str], arguments: list[object], convert: Callable[[Any], Any]
    ) -> Deferred[Any] | None:
        """Run a script. Return None while Redis must not be called.

        :param convert: converts the result; raises TypeError or ValueError if the script cannot have returned it.
        """
        if not self._breaker.allows(self._seconds()):
            self.errors += 1
            return None
        if self._connection is None:
            self._connection = self._connect()
        keys = [self._prefix + key for key in keys]
        texts = [format(each, ".9f") if isinstance(each, float) else each for each in arguments]
        answer: Deferred[Any] = self._connection.eval(script, keys, texts)
        answer.addTimeout(PATIENCE, self._clock)
        answer.addCallback(convert)
        return answer.addCallbacks(self._answered, self._not_answered)

    def _answered(self, result: Any) -> Any:
        if self._breaker.succeeded():
            log.info("Redis is available again; limits are shared between hosts")
        return result

    def _not_answered(self, failure: Failure) -> Failure:
        self.errors += 1
        if self._breaker.failed(self._seconds()):
            late = failure.check(CancelledError, ConnectError, DeferredTimeout)
            reason = f"no answer within {PATIENCE * 1000:g} ms" if late else reason_of(failure)
            log.warn("Redis is not available ({reason}); each host limits separately", reason=reason)
        return failure


def _hashed(name: str) -> str:
    """Return the hash under which a user name is stored, so that Redis contains no names. It has no secret, because all
    hosts must compute the same hash. Therefore someone who guesses a name can verify it."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _retry(seconds: Any) -> Retry | None:
    return None if seconds is None else Retry(float(seconds))


def connect(url: str) -> Any:
    """Make a connection to Redis that connects in the background, and reconnects when lost.

    :param url: ``redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]``.
    :raises ValueError: if it is not such a URL.
    """
    options = connection_options(url)
    import txredisapi  # type: ignore[import-untyped]  # it imports the reactor

    return txredisapi.lazyConnection(**options)


def connection_options(url: str) -> dict[str, Any]:
    """Return the arguments of ``txredisapi`` for a URL.

    :raises ValueError: if it is not a Redis URL.
    """
    found = urlsplit(url)
    database = found.path.strip("/")
    try:
        port = found.port or 6379
    except ValueError:
        port = 0
    if found.scheme != "redis" or not found.hostname or not port or not (database or "0").isdecimal():
        raise ValueError("must be redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]")
    return {
        "host": found.hostname,
        "port": port,
        "dbid": int(database) if database else None,
        "username": unquote(found.username) if found.username else None,
        "password": unquote(found.password) if found.password else None,
        "convertNumbers": False,
    }
