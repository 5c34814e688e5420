"""Parsers and encoders: the grammar of commands and the framing of mail data.

This package uses only the standard library: no transport, no policy, no state beyond one message.
"""
