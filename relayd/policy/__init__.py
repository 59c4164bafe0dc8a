"""Decisions: who may come in, how long to wait, what gives way.  No bytes, no sockets, no clock."""
