"""What an operator's worst week does to relayd: each fault is made for real, against the program as users get it.

    rows.py         the register of faults: provoked how, what must happen, what was seen
    rig.py          what a scenario runs on: a daemon with an untouched relay beside the one that suffers
    oracle.py       what is looked at when a scenario is over, whatever it was
    streams.py      the ends of one relay, for what is done to an established stream
    links.py        links that must live on, and a client that comes and goes beside them
    visitors.py     crowds of clients that come and leave
    door.py         a relay that many ask to come in to: who is let in, who is served
    lives.py        a daemon that stands still, or ends, and what it must leave
    wallclock.py    a wall clock that jumps
    control.py      the client of the untouched relay: a process of its own that misses no byte and no millisecond
    chaosproxy.py   a network that is slow, torn, deaf or gone

Each test of a row carries its id (`test_n1_...`).  `pytest tests/faults` is the short form; with `--long` the same
scenarios last as long as the figures they prove, `--seed N` replays a run, `--table` writes TABLE.md anew.
"""
