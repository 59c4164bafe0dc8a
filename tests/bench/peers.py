"""The programs: how each is started for a case, and its version."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.bench.cases import Case, Chain

ROOT = Path(__file__).resolve().parents[2]

# Debian keeps nginx and haproxy where only root's PATH leads.
SEARCH_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin"

_NGINX_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


@dataclass(frozen=True)
class Setup:
    """What a relay is started for. In a storm a second stream has ports of its own."""

    case: Case
    directory: Path  # for configuration files
    programs: Path  # where the compiled floors are
    source: int  # where the relay takes the source
    clients: int  # where it takes clients, or in a 1:1 case the receiver it connects to
    storm: tuple[int, int] | None = None

    @property
    def streams(self) -> list[tuple[int, int]]:
        """The pairs of ports."""
        return [(self.source, self.clients), *([self.storm] if self.storm else [])]

    def write(self, name: str, text: str) -> str:
        """Return the path of a file with that text."""
        path = self.directory / name
        path.write_text(text)
        return str(path)


Commands = list[list[str]]  # one for each process to start


@dataclass(frozen=True)
class Peer:
    """`commands` starts it; `version` is what to ask, and where in the answer it stands."""

    label: str
    program: str  # that must be there; "" for what comes with the benchmark
    commands: Callable[[Setup], Commands]
    version: tuple[list[str], str] = ([], "")
    one_port: bool = False  # source and clients come in at the same

    def missing(self) -> str:
        """Return why it cannot be measured here, "" where it can."""
        if self.program and not shutil.which(self.program, path=SEARCH_PATH):
            return f"no {self.program} here"
        if self.program == "nginx" and not _NGINX_MODULE.exists():
            return "nginx has no stream module here"
        return ""

    def read_version(self) -> str:
        """Return its version, "" where it has none of its own."""
        command, pattern = self.version
        if not command or self.missing():
            return ""
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PATH": SEARCH_PATH}
        )
        found = re.search(pattern, done.stdout + done.stderr)
        return found[1] if found else ""


def _relayd(more: Mapping[str, str] | None = None) -> Callable[[Setup], Commands]:
    def commands(setup: Setup) -> Commands:
        mode = "listen-connect" if setup.case.chain is Chain.PAIR else "listen-listen"
        keys = {"mode": mode, **setup.case.relayd, **(more or {})}
        relayd = [sys.executable, "-m", "relayd"]
        if not setup.storm:
            options = [word for key, value in keys.items() for word in ("-o", f"{key}={value}")]
            return [[*relayd, f"127.0.0.1:{setup.source}", f"127.0.0.1:{setup.clients}", *options]]
        # Two streams in one process, and the storm is on one of them: that is what could hurt the other.
        sections = [["[defaults]", *(f"{key} = {value}" for key, value in keys.items())]]
        for number, (source, clients) in enumerate(setup.streams):
            ends = [f"source = 127.0.0.1:{source}", f"destination = 127.0.0.1:{clients}"]
            sections.append([f"[relay stream{number}]", *ends])
        text = "\n\n".join("\n".join(section) for section in sections)
        return [[*relayd, "--config", setup.write("relayd.ini", text + "\n"), "--foreground"]]

    return commands


def _each_stream(*command: str) -> Callable[[Setup], Commands]:
    """Return what starts one process for each stream, {source} and {clients} filled in."""

    def commands(setup: Setup) -> Commands:
        return [
            [word.format(source=source, clients=clients, programs=setup.programs) for word in command]
            for source, clients in setup.streams
        ]

    return commands


def _haproxy(*options: str) -> Callable[[Setup], Commands]:
    def commands(setup: Setup) -> Commands:
        lines = [
            "global", "  nbthread 1",
            "defaults", "  mode tcp", "  timeout connect 5s", "  timeout client 1h", "  timeout server 1h",
            *(f"  option {option}" for option in options),
            "listen bench", f"  bind 127.0.0.1:{setup.source}", f"  server load 127.0.0.1:{setup.clients}",
        ]  # fmt: skip
        return [["haproxy", "-db", "-q", "-f", setup.write("haproxy.cfg", "\n".join(lines) + "\n")]]

    return commands


def _nginx(setup: Setup) -> Commands:
    text = f"""
        load_module {_NGINX_MODULE};
        daemon off;
        worker_processes 1;
        pid nginx.pid;
        error_log stderr;
        events {{ worker_connections 1024; }}
        stream {{ server {{ listen 127.0.0.1:{setup.source}; proxy_pass 127.0.0.1:{setup.clients}; }} }}
    """
    return [["nginx", "-e", "stderr", "-p", str(setup.directory), "-c", setup.write("nginx.conf", text)]]


PEERS = {
    "relayd": Peer("relayd", "", _relayd(), ([sys.executable, "-m", "relayd", "--version"], r"([\d.]+)")),
    "relayd-line": Peer("relayd, framing=line", "", _relayd({"framing": "line"})),
    "relayd-coalesce": Peer("relayd, coalesce=5ms", "", _relayd({"coalesce": "5ms"})),
    "floor-splice": Peer("C, splice", "", _each_stream("{programs}/floor_splice", "{source}", "{clients}")),
    "floor-copy": Peer("C, copying", "", _each_stream("{programs}/floor_copy", "{source}", "{clients}")),
    "nginx": Peer("nginx stream", "nginx", _nginx, (["nginx", "-v"], r"nginx/(\S+)")),
    "haproxy": Peer("HAProxy", "haproxy", _haproxy(), (["haproxy", "-v"], r"version (\S+)")),
    "haproxy-splice": Peer("HAProxy, splice-auto", "haproxy", _haproxy("splice-auto")),
    "socat": Peer(
        "socat",
        "socat",
        _each_stream("socat", "TCP-LISTEN:{source},bind=127.0.0.1,nodelay", "TCP:127.0.0.1:{clients},nodelay"),
        (["socat", "-V"], r"socat version (\S+)"),
    ),
    "ncat": Peer(
        "ncat --broker",
        "ncat",
        _each_stream("ncat", "--listen", "127.0.0.1", "{source}", "--broker", "--max-conns", "20000"),
        (["ncat", "--version"], r"Version (\S+)"),
        one_port=True,
    ),
    "str2str": Peer(
        "str2str",
        "str2str",
        _each_stream("str2str", "-in", "tcpsvr://:{source}", "-out", "tcpsvr://:{clients}"),
        (["dpkg-query", "--show", "--showformat", "${Version}", "rtklib"], r"(\S+)"),
    ),
}  # fmt: skip
