"""The ends of a relay: how links come to be.  Listening, connecting, replaying a file."""
