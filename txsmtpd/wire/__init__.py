"""From octets to meaning and back: the grammar of commands and the framing of mail data.

Everything here is pure: standard library only, no transport, no policy, no state beyond one message.
"""
