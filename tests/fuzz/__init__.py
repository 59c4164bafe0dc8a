"""Fuzzing: what comes from outside meets nothing but promises that are kept.

    python -m tests.fuzz                                each target for two minutes, guided by coverage
    python -m tests.fuzz framers --seconds 600 --seed 7
    python -m tests.fuzz framers --replay FILE          what is wrong with a finding, once more

The long form needs atheris (`pip install atheris`, which has wheels for Python 3.11 and newer), the short one,
test_fuzz.py, hypothesis alone.  Both feed the same targets:

    targets.py    one function a target: takes bytes, raises where a promise is broken, within limits
    script.py     how an input that is not taken as it is becomes a list of things to do
    daemon.py     the control socket of a whole service, for the target of that name
    corpus/       TARGET/NAME: inputs to begin with, and those that once found something; test_fuzz.py replays all

What the long form finds goes to a directory of its own, not into the tree (`--work`; by default
relayd-fuzz in the directory for temporary files), together with the inputs that reached something new.
"""
