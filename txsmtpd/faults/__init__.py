"""Fault injection: rules that make a server delay, reject, garble or drop deliberately, to test how clients cope."""
