"""More than one process for one server: ``--workers=N``.

The *master* binds all addresses, keeps the sockets as long as it runs, and accepts nothing. The *workers* are
processes that it spawns. They adopt the sockets, accept and serve. A worker that dies is replaced; SIGHUP replaces all
of them, new ones first.

* :mod:`.master` decides; :mod:`.process` is a worker as the master sees it; :mod:`.worker` is the worker's own side;
* :mod:`.messages` is what they tell each other; :mod:`.page` is the memory that they share; :mod:`.sockets` what is
  listened on; :mod:`.courtesy` how a worker accepts; :mod:`.backoff` when the next one starts.

Not available on Windows.
"""

from __future__ import annotations
