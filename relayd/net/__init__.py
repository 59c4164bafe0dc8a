"""Bytes in and out of file descriptors.  Only here are a socket's methods called.

`net` knows nothing of relays and configuration: whoever uses it passes values and callbacks.
"""
