"""A fleet of replicas under a changing load: rehearsed on a trace, advised, and controlled.

Joules of a rehearsal are simulated; no statement about accuracy rests on them.
"""
