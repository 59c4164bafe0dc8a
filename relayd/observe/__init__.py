"""What can be seen from outside: the log, the dump, the counters.  Looking on never delays the stream."""
