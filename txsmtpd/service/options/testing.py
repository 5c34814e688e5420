"""Options for testing clients: fault injection and transcripts."""

from __future__ import annotations

from txsmtpd.service.exit_status import described
from txsmtpd.service.options.table import Chosen, Group, Option, refusing
from txsmtpd.service.options.values import name
from txsmtpd.service.topics import describe_faults

OPTIONS = (
    Option(
        name="fault",
        metavar="RULE",
        many=True,
        separator=";",
        help='Inject a fault, such as "rcpt first=2 reply=451 4.7.1 later". See --help-faults.',
    ),
    Option(
        name="fault-seed",
        metavar="SEED",
        help="The seed for random faults: the same seed gives the same faults.",
        default="0",
        read=name,
    ),
    Option(
        name="transcript",
        metavar="FILE",
        help="Write a transcript of all sessions to the file, as JSON lines; without credentials.",
        read=name,
    ),
    Option(name="help-faults", help="List the parts of a rule and exit.", action=lambda: print(describe_faults())),
)


def read(chosen: Chosen) -> None:
    """Read the rules of faults."""
    seed = chosen.value("fault-seed", "0")
    chosen["faults"] = None
    wanted = chosen.all("fault")
    if not wanted:
        return
    from txsmtpd.faults.rules import Faults
    from txsmtpd.faults.spec import add_fault

    chosen["faults"] = Faults(seed)
    for given in wanted:
        with refusing(given):
            add_fault(chosen["faults"], given.text)


def finish(chosen: Chosen) -> None:
    """Open the file for transcripts."""
    given = chosen.one("transcript")
    chosen["transcript"] = None
    if given is None:
        return
    from txsmtpd.observe.journal import Journal
    from txsmtpd.observe.transcript import Transcripts

    with refusing(given):
        try:
            journal = Journal(name(given.text))
        except OSError as error:
            raise ValueError(error.strerror or described(error)) from error
    chosen["transcript"] = Transcripts(sessions=0, tell=journal)
    chosen["reopen"].append(journal.reopen)


GROUP = Group(title="Testing clients", options=OPTIONS, read=read, finish=finish)
