"""The house keeps its rules: who imports whom, who touches what, which test is whose."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import relayd
from relayd.config.load import load_file
from tests.support import ROOT

SOURCES = sorted((ROOT / "relayd").rglob("*.py"))
EXAMPLES = sorted((ROOT / "etc").glob("**/*.ini"))

# Modules that no test module can mirror, and why.
UNMIRRORED = {
    "endpoints/endpoint.py": "nothing but protocols; mypy is their test",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "relayd").as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def imports(tree: ast.Module) -> Iterator[tuple[str, set[str]]]:
    """Yield (module, names imported from it), those for type checkers alone left out."""
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import):
                yield from ((alias.name, set()) for alias in inner.names)
            elif isinstance(inner, ast.ImportFrom):
                assert not inner.level, "imports are absolute"
                yield inner.module or "", {alias.name for alias in inner.names}


def imported_modules(tree: ast.Module) -> Iterator[str]:
    """Yield the dotted names that are imported, `from a import b` as a.b where that is a module."""
    for module, names in imports(tree):
        inner = [name for name in names if (ROOT / module.replace(".", "/") / f"{name}.py").exists()]
        yield from (f"{module}.{name}" for name in inner)
        if not inner or len(inner) < len(names):
            yield module


# -- 1: imports run one way ---------------------------------------------------------------------


def layers() -> list[set[str]]:
    """Return the import rule of relayd/__init__.py, from the top line down."""
    assert relayd.__doc__
    lines = re.search(r"each line only to lines below it:\n\n((?: +\S.*\n)+)", relayd.__doc__)
    assert lines, "the import rule is not where it was"
    return [set(line.replace(",", " ").replace("  ", " ").split()) for line in lines[1].splitlines()]


def layer_of(module: str) -> int:
    """Return the line of the rule that a dotted name of relayd stands in."""
    part = module.split(".")[1]
    return next(number for number, line in enumerate(layers()) if part in line)


def part_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").partition("/")[0]


def test_the_rule_and_the_tree_name_the_same_parts() -> None:
    named = [part for line in layers() for part in line]
    parts = {part_of(path) for path in SOURCES} - {"__init__", "__main__"}
    assert len(named) == len(set(named))
    assert set(named) == parts


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_run_one_way(path: Path) -> None:
    if path.name == "__main__.py" or name_of(path) == "__init__.py":
        return
    own = part_of(path)
    for module in imported_modules(tree_of(path)):
        if not module.startswith("relayd."):
            continue  # another's, or __version__
        if module.split(".")[1] == own:
            continue  # inside its own folder
        assert layer_of(f"relayd.{own}") < layer_of(module), f"{own} imports {module}"


def test_the_root_imports_nothing() -> None:
    assert list(imports(tree_of(ROOT / "relayd" / "__init__.py"))) == []


def test_no_circle_inside_a_folder() -> None:
    edges = {
        f"relayd.{name_of(path).removesuffix('.py').replace('/', '.')}": set(imported_modules(tree_of(path)))
        for path in SOURCES
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for following in edges.get(module, ()):
                visit(following, (*trail, module))
            done.add(module)

    for module in edges:
        visit(module, ())


@pytest.mark.parametrize("path", [path for path in SOURCES if part_of(path) == "net"], ids=name_of)
def test_net_knows_nothing_of_the_configuration(path: Path) -> None:
    assert not [module for module in imported_modules(tree_of(path)) if module.startswith("relayd.config")]


# -- 2: tests mirror modules --------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.name not in ("__init__.py", "__main__.py")], ids=name_of
)
def test_every_module_has_its_test_module(path: Path) -> None:
    name = name_of(path)
    mirror = ROOT / "tests" / Path(name).parent / f"test_{path.name}"
    assert mirror.exists() != (name in UNMIRRORED), f"{name}: {mirror}"


def test_the_excepted_modules_exist_and_hold_no_code() -> None:
    for name in UNMIRRORED:
        for node in ast.walk(tree_of(ROOT / "relayd" / name)):
            if isinstance(node, ast.FunctionDef):
                assert len(node.body) == 1 and isinstance(node.body[0], ast.Expr), f"{name}: {node.name} does something"


# -- 3: examples --------------------------------------------------------------------------------


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 1


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_right(path: Path) -> None:
    assert load_file(str(path), {}).relays


# -- 4: who touches what ------------------------------------------------------------------------

# Names of `socket` that are constants, types or questions about this host: no bytes move by them.
HARMLESS = {"socket", "AddressFamily", "gethostname"}


def attributes_of(tree: ast.Module, module: str) -> set[str]:
    """Return the names that are used of an imported module, however they were imported."""
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module
    }
    return used.union(*(names for name, names in imports(tree) if name == module))


def calls(tree: ast.Module, method: str) -> bool:
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == method
        and (method != "bind" or node.args)  # a log is bound to keywords
        for node in ast.walk(tree)
    )


def constructs(tree: ast.Module, module: str, names: set[str]) -> set[str]:
    """Return which of the module's names are called."""
    return {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == module
        and node.func.attr in names
    }


SOCKET_METHODS = (
    "accept", "bind", "connect", "connect_ex", "getpeername", "getsockname", "getsockopt", "listen", "recv",
    "recv_into", "recvmsg",
    "sendall", "sendmsg", "sendto", "setblocking", "setsockopt", "settimeout", "shutdown",
)  # fmt: skip
NOT_A_SOCKET_S = {
    "endpoints/connect.py": {"connect"},  # the Connector's
    "process/runner.py": {"listen"},  # the Controller's
    "process/reloader.py": {"listen"},  # the Controller's
}

# A program of its own that asks a daemon and waits for the answer: it has no reactor, so it talks to a
# blocking socket, and `top` sleeps between two answers.
OWN_PROGRAM = "relayctl.py"

# Modules that use what only net/ may touch else, and why.
SYSTEM_EXCEPTIONS = {
    "process/pidfile.py": {"fcntl"},  # the lock is a flock; its class has lockfile's names
}

# Modules that read a clock besides the reactor and the observers, and why.
CLOCKS = {
    OWN_PROGRAM: {"sleep"},  # see there
    "process/daemonize.py": {"monotonic"},  # the caller waits for its daemon: there is no reactor yet
    "process/reloader.py": {"time"},  # when the configuration was read, for people to see
    "process/systemd.py": {"clock_gettime_ns", "CLOCK_MONOTONIC"},  # the stamp that Type=notify-reload asks for
}


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if part_of(path) != "net" and name_of(path) != OWN_PROGRAM], ids=name_of
)
def test_only_net_touches_sockets(path: Path) -> None:
    tree = tree_of(path)
    used = {name for name in attributes_of(tree, "socket") if not name.isupper()}
    assert used <= HARMLESS
    assert not constructs(tree, "socket", {"socket"}), "a socket is made outside net/"
    touched = {method for method in SOCKET_METHODS if calls(tree, method)}
    assert touched <= NOT_A_SOCKET_S.get(name_of(path), set())
    modules = {module for module, _ in imports(tree)} & {"selectors", "fcntl", "ssl"}
    assert modules == SYSTEM_EXCEPTIONS.get(name_of(path), set())


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_one_clock_no_asyncio_few_threads_and_signals_in_one_place(path: Path) -> None:
    tree, name = tree_of(path), name_of(path)
    modules = {module.partition(".")[0] for module, _ in imports(tree)}
    times = attributes_of(tree, "time")
    if name in CLOCKS:
        assert times == CLOCKS[name], "the exception is larger than the need, or smaller"
    else:
        assert ("monotonic" in times) == (name == "net/reactor.py"), "only the reactor reads the clock"
        assert times <= {"monotonic", "time"}, "nothing sleeps"
        assert "time" not in times or part_of(path) == "observe", "wall clock is for showing alone"
    assert not modules & {"asyncio", "multiprocessing", "subprocess", "concurrent", "socketserver", "threading"}
    assert ("_thread" in modules) == (name == "net/resolver.py")
    if part_of(path) != "process":
        assert not modules & {"signal", "daemon", "lockfile", "resource"}
        assert not attributes_of(tree, "os") & {
            "fork",
            "forkpty",
            "setuid",
            "setgid",
            "kill",
            "_exit",
            "execv",
            "system",
            "popen",
        }


def test_relayctl_shares_no_machinery_with_the_daemon() -> None:
    """It must start fast, and run where the daemon's libraries are not."""
    tree = tree_of(ROOT / "relayd" / OWN_PROGRAM)
    assert set(imported_modules(tree)) & {"relayd.net", "relayd.process", "daemon", "lockfile", "selectors"} == set()
    assert not [module for module in imported_modules(tree) if module.startswith(("relayd.net.", "relayd.process."))]


def test_every_exception_is_one_of_a_module_that_exists() -> None:
    for name in {*CLOCKS, *SYSTEM_EXCEPTIONS, *NOT_A_SOCKET_S, OWN_PROGRAM}:
        assert (ROOT / "relayd" / name).exists(), name


@pytest.mark.parametrize("path", [path for path in SOURCES if part_of(path) in ("wire", "policy")], ids=name_of)
def test_wire_and_policy_are_pure(path: Path) -> None:
    modules = {module.partition(".")[0] for module, _ in imports(tree_of(path))}
    assert not modules & {"socket", "time", "os", "random", "select"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_bare_except_no_silent_one_no_del_no_star(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: a bare except"
            silent = len(node.body) == 1 and isinstance(node.body[0], ast.Pass)
            source = path.read_text().splitlines()
            assert not silent or "#" in source[node.body[0].lineno - 1], f"line {node.lineno}: silent, and no reason"
        elif isinstance(node, ast.FunctionDef):
            assert node.name != "__del__"
        elif isinstance(node, ast.ImportFrom):
            assert "*" not in {alias.name for alias in node.names}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_are_of_a_size_one_can_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 50, node.name
