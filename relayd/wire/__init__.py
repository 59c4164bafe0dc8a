"""What bytes mean: where a record ends.  No sockets, no clock."""
