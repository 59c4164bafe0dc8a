"""From text to a frozen value: INI files and command lines become a Config, or a list of problems.

kinds.py     the types of values: how each is read, shown and explained
keys.py      the one table of keys; the manual, --help and --check are made from it
settings.py  the frozen values that the rest of the program sees
expand.py    ${NAME} and @FILE
ini.py       one file's text -> sections and entries with their lines
checks.py    what no single key can see: loops, ports taken twice, keys without effect
load.py      files and command lines -> Config
"""
