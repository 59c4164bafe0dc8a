"""relayd carries one live byte stream to many places, across NAT and firewalls, for ever.

The path of one byte:

    fd -> Transport -> Framer -> taps (dump)
                         |   one shared bytes object per chunk, a run of whole records
       destination 1: Sink = SendQueue -> Transport -> fd
       destination 2: Sink = SendQueue -> Transport -> fd
                             |
                       a place on the Tape, which holds what anybody has still to send, once

Where one raw stream goes to one place and nobody looks on, it does not come up here at all: what is read
at the source's descriptor is spliced to the destination's, through a pipe in the kernel.

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
    sink.py         a destination's queue and link; the fast path, overflow, what is dropped
    slowness.py     watches a destination that does not keep up;  brake.py  lets a spliced source wait for it
    sendqueue.py    what waits for one destination: the chunk that is being sent, and a place on the tape
    tape.py         the newest part of a stream;  history.py  what of it those get who join
    trial.py        whether a destination that half-closed still takes anything
    breakoff.py     ends a link so that it cannot be taken for the end of the stream
    net/            bytes in and out of descriptors: reactor, transport, connector, acceptor, listener, resolver,
                    lookups, pipe, epoll
    wire/           what bytes mean: chunks, framings.  No sockets, no clock
    policy/         decisions: backoff, overflow, history, access, returns, loops.  No bytes, no sockets
    observe/        what can be seen: log, dump, counters
    config/         text -> frozen values; the one table of keys
    output.py address.py errors.py

Imports run one way, each line only to lines below it:

    cli, relayctl
    process, statustable
    output
    controller, service
    build, reload
    relay
    status
    inlet, outlet
    endpoints, returnpath, trial, breakoff
    sink, history
    pipeline, sendqueue, slowness, brake
    tape
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
