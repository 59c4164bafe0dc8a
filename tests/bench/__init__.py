"""The benchmark: relayd beside what it replaces, and beside the least that C can do.

    pip install -e '.[bench]'
    python -m tests.bench                       everything, medians of five rounds: about 20 minutes
    python -m tests.bench --quick               a look: one short round, not all programs, two minutes
    python -m tests.bench --cases messages-100 --peers relayd,floor-copy --runs 3

It runs the relayd of the directory it stands in, with the Python that runs it.  A C compiler is needed;
of the other programs (Debian: haproxy ncat nginx libnginx-mod-stream rtklib socat) those are measured that
are there.  Root may open more descriptors than the hard limit allows; without it, the two cases with
more clients than that are left out.

What is measured, and how:

 *  One relay at a time, pinned to the first core; the load, a C program that is the source and all
    receivers at once, is pinned to the last.  Programs take turns in each round, so that whatever else
    the machine does hits all alike; a run waits for the machine to be idle, and what others used of it
    meanwhile is noted (`foreign`, with time stolen by the hypervisor).
 *  CPU is what the relay's processes and threads ran, in nanoseconds, from /proc (schedstat), from when
    every receiver is in step until it has everything.  It is given for a GB that reached a receiver, or
    for one message that reached one receiver.
 *  Latency is from the source's send() to the receiver's recv() returning, for every message and receiver.
 *  Every message, and the first part of every bulk run, is checked to the byte; the rest of a bulk
    run by stamps and counts (see load.c).  What lost, tore, doubled or reordered anything says so.
 *  1:1: the source connects to the relay, the relay connects to the receiver.  Fan-out: source and
    receivers connect to the relay.  Every program plays the same part.
 *  Programs run as they come: no tuning but what a case needs of all (limits on clients, a backlog,
    no Nagle).  haproxy-splice is HAProxy with `option splice-auto`, which is off unless asked for.

Figures of two runs on a virtual machine can differ by a tenth, ratios within one run by much less: the
bars are ratios, the median of those of each round.
"""
