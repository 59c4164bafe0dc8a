"""The other proxies that relayd is held against, each with the best settings that its manual has for a lasting stream.

    keepalive       a probe after 1 s idle, one more a second later   (nginx: on the side where it listens)
    nothing taken   1 s, or 30 s                                      (HAProxy, socat: TCP_USER_TIMEOUT; nginx: none)
    half-closed     1 s without data                                  (nginx: none)

relayd's part of the same is `relayd_keys`.  A plain proxy carries one connection each way and ends both together;
relayd's equal is one source that comes in, one destination that is connected to, everything that comes back returned
to the source (`return = all`, the default then), and the destination closed with the source.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT, spawned


def relayd_keys(stall: int) -> dict[str, str]:
    """Return the keys of a relay of ours; `stall`: seconds in which nothing is taken."""
    return {
        "mode": "listen-connect",
        "return_": "all",
        "on_source_loss": "close",
        "reconnect": "50ms",
        "keepalive": "1s/1s/1",
        "stall_timeout": f"{stall}s",
        "linger_timeout": "1s",
    }


# Debian keeps nginx and haproxy where only root's PATH leads.
_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin"
_STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")

_TCP_USER_TIMEOUT = 18  # linux/tcp.h


def _haproxy(folder: Path, port: int, server: int, stall: int) -> list[str]:
    return ["haproxy", "-db", "-q", "-f", _written(folder / f"haproxy-{port}.cfg", f"""
global
  nbthread 1
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout client-fin 1s
  timeout server-fin 1s
  option tcpka
  clitcpka-idle 1s
  clitcpka-intvl 1s
  clitcpka-cnt 1
  srvtcpka-idle 1s
  srvtcpka-intvl 1s
  srvtcpka-cnt 1
listen one
  bind 127.0.0.1:{port} tcp-ut {stall}s
  server one 127.0.0.1:{server} tcp-ut {stall}s
""")]  # fmt: skip


def _nginx(folder: Path, port: int, server: int, stall: int) -> list[str]:
    text = f"""
load_module {_STREAM_MODULE};
daemon off;
worker_processes 1;
pid nginx-{port}.pid;
events {{ worker_connections 64; }}
stream {{ server {{
    listen 127.0.0.1:{port} so_keepalive=1s:1s:1;
    proxy_pass 127.0.0.1:{server};
    proxy_timeout 1h;
    proxy_half_close on;
    proxy_socket_keepalive on;
}} }}
"""
    return ["nginx", "-e", "stderr", "-p", str(folder), "-c", _written(folder / f"nginx-{port}.conf", text)]


def _socat(folder: Path, port: int, server: int, stall: int) -> list[str]:
    keep = f"nodelay,keepalive,keepidle=1,keepintvl=1,keepcnt=1,setsockopt-int=6:{_TCP_USER_TIMEOUT}:{1000 * stall}"
    return ["socat", "-t", "1", f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,{keep}", f"TCP:127.0.0.1:{server},{keep}"]


def _written(file: Path, text: str) -> str:
    file.write_text(text)
    return str(file)


@dataclass(frozen=True)
class Peer:
    """One of them: `words(folder, port, server, stall)` start it between two ports of 127.0.0.1."""

    label: str
    program: str
    words: Callable[[Path, int, int, int], list[str]]

    def missing(self) -> bool:
        """Whether it cannot be run here."""
        return not shutil.which(self.program, path=_PATH) or (self.program == "nginx" and not _STREAM_MODULE.exists())

    @contextlib.contextmanager
    def running(self, folder: Path, port: int, server: int, stall: int) -> Iterator[int]:
        """Run it; yield its pid."""
        words = self.words(folder, port, server, stall)
        environment = {**os.environ, "PATH": _PATH}
        with spawned(*words, cwd=ROOT, env=environment) as process:
            try:
                yield process.pid
            finally:
                process.terminate()  # nginx has a child that a kill would leave behind
                process.wait(5)


PEERS = (Peer("HAProxy", "haproxy", _haproxy), Peer("nginx", "nginx", _nginx), Peer("socat", "socat", _socat))


def family(pid: int) -> list[int]:
    """Return the pid and those of its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]
