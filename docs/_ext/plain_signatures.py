"""Makes signatures readable: ``SMTP``, not ``<class 'txsmtpd.smtp.SMTP'>``, and no arguments that protocols inherit."""

import re

from sphinx.application import Sphinx

CLASS = re.compile(r"<class '(?:\w+\.)*(\w+)'>")
FUNCTION = re.compile(r"<(?:built-in )?function (?:\w+\.)*(\w+)>")
LAMBDA = re.compile(r"<function [\w.]*<lambda>>")
TABLE = re.compile(r"=\(\(.*\)\)(?=[,)])")


def plain(
    app: Sphinx, what: str, name: str, thing: object, options: object, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    if signature is None:
        return None
    if signature == "(*args, **kwargs)" and getattr(thing, "_is_protocol", False):
        return "", returns
    signature = TABLE.sub("=(...)", LAMBDA.sub("...", signature))
    return FUNCTION.sub(r"\1", CLASS.sub(r"\1", signature)), returns


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-signature", plain)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
