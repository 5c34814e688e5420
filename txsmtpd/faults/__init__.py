"""Fault injection: rules that make a server delay, refuse, garble or drop on purpose, to test how clients cope."""
