"""More than one process for one server: ``--workers=N``.

The *master* binds all addresses, keeps the sockets as long as it runs, and accepts nothing. The *workers* are
processes that it spawns. They adopt the sockets, accept and serve. A worker that dies is replaced; SIGHUP replaces all
of them, new ones first.

* :mod:`.master` starts and replaces workers; :mod:`.process` is a worker as the master sees it; :mod:`.worker` is the
  worker's own side; :mod:`.messages` defines the messages between them;
* :mod:`.inheritance` defines what a worker inherits, and is all that a process without workers imports;
* :mod:`.connection_table` and :mod:`.sketch` are shared memory; :mod:`.sockets` has the listening sockets;
  :mod:`.balancing` balances connections; :mod:`.backoff` delays restarts;
* :mod:`.command` makes the master of the command line; :mod:`.service` makes that of other programs, whose workers run
  :mod:`.program` and find their factories by :mod:`.callables`.

Not available on Windows.
"""

from __future__ import annotations
