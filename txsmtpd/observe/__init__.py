"""Observing sessions: transcripts, the journal that writes them to a file, metrics and health checks."""
