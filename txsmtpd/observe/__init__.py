"""Observation of sessions: transcripts, and the journal that writes them to a file."""
