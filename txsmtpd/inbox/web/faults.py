"""Switches faults on and off while the server runs: as rules in the syntax of ``--fault``, and as Mailpit's chaos.

Below ``/in/.../`` a rule applies only to mail of that scope.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from txsmtpd.faults.rules import Faults, Occasion, Rule
from txsmtpd.faults.spec import add_fault
from txsmtpd.inbox.scope import Scope
from txsmtpd.inbox.web.request import Call
from txsmtpd.inbox.web.response import HTTPError, Response, json_response, ok
from txsmtpd.inbox.web.routes import Route, options

MOST = 100  # rules

TRIGGERS = {"Sender": ("mail", 451), "Recipient": ("rcpt", 451), "Authentication": ("auth", 535)}
STATUS = {4: "4.7.0", 5: "5.7.0"}


def _faults(call: Call) -> Faults:
    if call.settings.faults is None:
        raise HTTPError(400, "faults cannot be changed here")
    found: Faults = call.settings.faults
    return found


class Owned:
    """A condition that restricts a rule to a scope, and marks the scope as the rule's owner."""

    def __init__(self, scope: Scope, spec: str, trigger: str = "") -> None:
        self.scope = scope
        self.spec = spec
        self.trigger = trigger

    def __call__(self, occasion: Occasion) -> bool:
        return all(_fits(occasion, name, value) for name, value in self.scope.keys)


def _fits(occasion: Occasion, name: str, value: str) -> bool:
    envelope = occasion.envelope
    if name in ("to", "domain"):
        paths = [*envelope.rcpt_tos]
        if occasion.stage == "rcpt" and occasion.address is not None:
            paths = [occasion.address]
        found = [path.lower() if name == "to" else path.rpartition("@")[2].lower() for path in paths]
        return value in found
    if name == "sender":
        sender = occasion.address if occasion.stage == "mail" else envelope.mail_from
        return (sender or "").lower() == value
    if name == "user":
        from txsmtpd.inbox.handler import user_of

        return user_of(occasion.session) == value
    return False  # the content is not known before the message has arrived


def _owned(rule: Rule) -> Owned | None:
    return rule.when if isinstance(rule.when, Owned) else None


def _in_scope(rule: Rule, scope: Scope) -> bool:
    owned = _owned(rule)
    keys = owned.scope.keys if owned is not None else ()
    return set(scope.keys) <= set(keys)


def shown(rule: Rule) -> dict[str, Any]:
    """Return a rule for JSON."""
    owned = _owned(rule)
    return {
        "id": rule.number,
        "spec": owned.spec if owned is not None else "",
        "rule": owned.spec if owned is not None else str(rule),
        "effect": rule.effect,
        "hits": rule.hits,
        "left": rule.left,
        "scope": str(owned.scope) if owned is not None else "",
    }


def rules(call: Call) -> list[Rule]:
    """Return the rules in this scope."""
    return [rule for rule in _faults(call) if _in_scope(rule, call.scope)]


async def list_faults(call: Call) -> Response:
    fired = [
        {"session": each.session, "stage": each.stage, "rule": each.rule, "effect": each.effect}
        for each in _faults(call).fired[-100:]
    ]
    return json_response({"faults": [shown(rule) for rule in rules(call)], "fired": [] if call.scope.keys else fired})


def add_rule(call: Call, spec: str) -> Rule:
    """Add a rule.

    :raises HTTPError: if *spec* is not a valid rule.
    """
    faults = _faults(call)
    if len(list(faults)) >= MOST:
        raise HTTPError(400, f"there are {MOST} rules already")
    if "certificate=" in spec and "/" in spec:
        raise HTTPError(400, "a certificate file can be given only on the command line")
    if any(name not in ("to", "domain", "sender", "user") for name, _ in call.scope.keys):
        raise HTTPError(400, "a fault cannot depend on the header of a message, which comes too late")
    try:
        rule = add_fault(faults, spec, Owned(call.scope, spec))
    except (ValueError, TypeError) as error:
        raise HTTPError(400, str(error)) from None
    call.store.hub.publish("faults")
    return rule


async def add(call: Call) -> Response:
    spec = call.json().get("spec")
    if not isinstance(spec, str) or not spec.strip() or len(spec) > 1000:
        raise HTTPError(400, 'spec must be a rule such as "rcpt first=2 reply=451 4.7.1 later"')
    return json_response(shown(add_rule(call, spec.strip())), 201)


def remove_rules(call: Call, which: Callable[[Rule], bool]) -> bool:
    """Remove the matching rules of this scope. Return True if there were any."""
    removed = [rule for rule in rules(call) if which(rule)]
    for rule in removed:
        _faults(call).remove(rule)
    if removed:
        call.store.hub.publish("faults")
    return bool(removed)


async def remove_all(call: Call) -> Response:
    remove_rules(call, lambda rule: True)
    return ok()


async def remove(call: Call) -> Response:
    if not remove_rules(call, lambda rule: str(rule.number) == call.path["number"]):
        raise HTTPError(404, "there is no such fault")
    return ok()


# Chaos


def _chaos(call: Call) -> dict[str, Any]:
    found = {name: {"ErrorCode": code, "Probability": 0} for name, (_, code) in TRIGGERS.items()}
    for rule in rules(call):
        owned = _owned(rule)
        if owned is not None and owned.trigger and owned.scope == call.scope:
            name, code, share = owned.trigger.split()
            found[name] = {"ErrorCode": int(code), "Probability": int(share)}
    return found


async def chaos(call: Call) -> Response:
    return json_response(_chaos(call))


async def set_chaos(call: Call) -> Response:
    body = call.json()
    wanted: dict[str, tuple[int, int]] = {}
    for name, (_, default) in TRIGGERS.items():
        trigger = body.get(name.lower()) or {}
        if not isinstance(trigger, dict):
            raise HTTPError(400, f"{name} must be an object with ErrorCode and Probability")
        facts = {str(key).lower(): value for key, value in trigger.items()}
        code, share = facts.get("errorcode") or default, facts.get("probability") or 0
        if not isinstance(code, int) or not 400 <= code <= 599:
            raise HTTPError(400, f"{name}: ErrorCode must be a number from 400 to 599")
        if not isinstance(share, int) or not 0 <= share <= 100:
            raise HTTPError(400, f"{name}: Probability must be a number from 0 to 100")
        wanted[name] = code, share
    faults = _faults(call)
    for rule in rules(call):
        owned = _owned(rule)
        if owned is not None and owned.trigger and owned.scope == call.scope:
            faults.remove(rule)
    for name, (code, share) in wanted.items():
        if share:
            stage, _ = TRIGGERS[name]
            spec = f"{stage} share={share / 100:g} reply={code} {STATUS[code // 100]} Chaos"
            add_fault(faults, spec, Owned(call.scope, spec, f"{name} {code} {share}"))
    call.store.hub.publish("faults")
    return json_response(_chaos(call))


ROUTES = [
    Route("GET", "/api/v1/chaos", chaos, "Return the settings of Mailpit's chaos feature: three random faults."),
    Route(
        "PUT",
        "/api/v1/chaos",
        set_chaos,
        "Change the settings of Mailpit's chaos feature.",
        body=options(**dict.fromkeys(TRIGGERS, "{ErrorCode, Probability}")),
    ),
    Route("GET", "/api/inbox/v1/faults", list_faults, "List the active faults, and how often they occurred."),
    Route(
        "POST",
        "/api/inbox/v1/faults",
        add,
        "Add a fault.",
        body=options(spec="a rule, in the syntax of --fault"),
    ),
    Route("DELETE", "/api/inbox/v1/faults", remove_all, "Remove all faults."),
    Route("DELETE", "/api/inbox/v1/faults/{number}", remove, "Remove a fault."),
]
