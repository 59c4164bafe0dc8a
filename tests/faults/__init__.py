"""What an operator's worst week does to relayd: each fault is made for real, against the program as users get it.

    rows.py         the register of faults: provoked how, what must happen, what was seen
    rig.py          what a scenario runs on: a daemon with an untouched relay beside the one that suffers
    oracle.py       what is looked at when a scenario is over, whatever it was
    control.py      the client of the untouched relay: a process of its own that misses no byte and no millisecond
    chaosproxy.py   a network that is slow, torn, deaf or gone

Each test of a row carries its id (`test_n1_...`).  `pytest tests/faults` is the short form; with `--long` the same
scenarios last as long as the figures they prove, `--seed N` replays a run, `--table` writes TABLE.md anew.
"""
