"""relayd carries one live byte stream to many places, across NAT and firewalls, for ever.

The path of one byte:

    fd -> Transport -> Framer -> taps (dump)
                         |   one shared bytes object per chunk, a run of whole records
       destination 1: Sink = SendQueue -> Transport -> fd
       destination 2: Sink = SendQueue -> Transport -> fd

Who is who, in the order of reading:

    cli.py          relayd: argv -> a command and an exit status
    relayctl.py     relayctl: asks a running daemon;  statustable.py  what it prints
    process/        life as a Unix process: runner, daemon, pidfile, privileges, signals, reload, systemd
    controller.py   the control socket's protocol and server
    service.py      Service: one reactor, all relays; start, reload, stop, status
    reload.py       what a new configuration changes: a pure difference
    build.py        configuration -> objects: the one module that knows every concrete class
    relay.py        Relay: a source end, a pipeline each way, destination ends
    status.py       what the ends look like from outside
    inlet.py        the source end: at most one live link
    outlet.py       a destination end: clients that come, or one address that is connected to
    endpoints/      how links come to be: listen, connect, replay
    returnpath.py   what destinations may send back
    pipeline.py     one direction: producers -> taps -> sinks
    sink.py         a destination's queue and link; the fast path, overflow, stalls
    sendqueue.py    references to shared chunks, and an offset
    trial.py        whether a destination that half-closed still takes anything
    net/            bytes in and out of descriptors: reactor, transport, connector, acceptor, listener, resolver
    wire/           what bytes mean: framing.  No sockets, no clock
    policy/         decisions: backoff, overflow, access, returns, loops.  No bytes, no sockets
    observe/        what can be seen: log, dump, counters, lag
    config/         text -> frozen values; the one table of keys
    output.py address.py errors.py

Imports run one way, each line only to lines below it:

    cli, relayctl
    process, statustable, output
    controller, service
    build, reload
    relay
    status
    inlet, outlet
    endpoints, returnpath, trial
    sink
    pipeline, sendqueue
    config
    net
    wire, policy, observe
    address
    errors

A mode is not a code path: config/ turns the word into two roles, build.py gives each role an endpoint,
and from there on every relay is the same.  Time, randomness and name resolution are arguments, so
tests advance a clock of their own.  The only threads are the resolver's.

What closes, closes in two steps.  `close` or `abort` marks; the reactor frees at the end of the turn
and then calls `connection_lost(reason)`, once.  So nothing that is walked changes under the walker, and
no descriptor's number is reused while an event of its former owner may still be in the batch.
"""

__version__ = "0.1.0"
