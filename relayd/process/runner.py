"""The process around the service: from a configuration to an exit, in the foreground or as a daemon."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, MutableMapping

from lockfile import AlreadyLocked, LockFailed

from relayd.address import UnixAddress
from relayd.build import Surroundings, listen_settings
from relayd.config.settings import Config
from relayd.controller import Controller
from relayd.errors import StartError
from relayd.net.listener import Listener, ListenerPool, remove_dead_socket
from relayd.net.reactor import Reactor
from relayd.net.resolver import Resolver
from relayd.observe.dump import RETRY_INTERVAL
from relayd.observe.log import BoundLog, EventLog
from relayd.observe.writer import LossyWriter, unshared
from relayd.output import put
from relayd.policy.loops import LoopGuard
from relayd.process.daemonize import Caller, daemonize
from relayd.process.limits import keep_freed_memory, raise_descriptor_limit
from relayd.process.logtarget import LogTargets
from relayd.process.operator import Operator
from relayd.process.pidfile import PidFile
from relayd.process.privileges import Identity, found_from
from relayd.process.reloader import Reloader
from relayd.process.signals import Signals
from relayd.process.systemd import Notifier, listen_descriptors
from relayd.service import Service

_STDOUT = 1
_STDERR = 2

# The line of `systemctl status` follows what happens, but not every link of a burst; in seconds.
_STATUS_INTERVAL = 1.0

# A loop that is later than this, in seconds, is logged: clients begin to notice.
_LAG_LOGGED = 0.1

Load = Callable[[], Config]


def run_foreground(config: Config, load: Load | None, environ: MutableMapping[str, str]) -> None:
    """Run until SIGTERM or SIGINT, in this process. Raises StartError before anything moves."""
    if config.umask is not None:
        os.umask(config.umask)
    pidfile = _held(config)
    try:
        runner = _Runner(config, load, environ, foreground=True, stale=pidfile.stale if pidfile else 0)
        if pidfile is not None:
            _write(pidfile)
        runner.run(ready=lambda: None)
    finally:
        if pidfile is not None:
            pidfile.release()


def run_daemon(config: Config, load: Load, environ: MutableMapping[str, str]) -> None:
    """Return when a daemon has bound every port; raises StartError with its reasons where it has not."""
    Identity(config.user, config.group)  # a name that nobody has is told before anything is touched
    pidfile = _held(config)

    def body(caller: Caller) -> None:
        runner = _Runner(config, load, environ, foreground=False, stale=pidfile.stale if pidfile else 0)
        runner.run(ready=caller.say_ready)

    try:
        daemonize(pidfile, config.umask, body)
    except StartError:
        # What the daemon made while it was root, and could not remove when it was somebody else, or in a chroot.
        enabled = [relay for relay in config.relays if relay.enabled]
        for address in (address for relay in enabled for _, address in relay.listening):
            if isinstance(address, UnixAddress):
                with contextlib.suppress(OSError):
                    remove_dead_socket(address.path)
        raise


def _held(config: Config) -> PidFile | None:
    """Return the locked pidfile, None where there is none; raises StartError where another process has it."""
    if not config.pidfile:
        return None
    pidfile = PidFile(config.pidfile)
    try:
        pidfile.hold()
    except AlreadyLocked as error:
        raise StartError([f"{error} ({config.pidfile})"]) from error
    except LockFailed as error:
        raise StartError([f"cannot lock pidfile {config.pidfile}: {error}"]) from error
    return pidfile


def _write(pidfile: PidFile) -> None:
    try:
        pidfile.acquire()
    except LockFailed as error:
        raise StartError([f"cannot write pidfile {pidfile.path}: {error}"]) from error


class _Runner:
    """Holds the pieces together for as long as the process lives."""

    def __init__(
        self, config: Config, load: Load | None, environ: MutableMapping[str, str], foreground: bool, stale: int
    ) -> None:
        """`load` reads the configuration again; None where it came from a command line. Raises StartError.

        `stale` is the pid that a former owner has left in the pidfile, 0 where there was none.
        """
        self._identity = Identity(config.user, config.group)
        self._stale = stale
        try:
            reactor = Reactor()
            self._stderr = LossyWriter(reactor, unshared(_STDERR)) if foreground else None
            self._log_targets = LogTargets(self._stderr)
            self._notifier = Notifier(environ, reactor.call_later)
        except OSError as error:
            raise StartError([f"cannot watch sockets: {error.strerror}"]) from error
        self._config = config
        self._load = load
        self._reactor = reactor
        self._pool = ListenerPool(listen_descriptors(environ))
        self._stdout = LossyWriter(reactor, unshared(_STDOUT), RETRY_INTERVAL, self._stdout_failed)
        self._status_pending = False
        self._inside = ""  # the chroot, once it has been entered
        self._log: EventLog
        self._service: Service
        self._reloader: Reloader

    def run(self, ready: Callable[[], None]) -> None:
        """Run until stopped; `ready()` is called once every port is bound. Raises StartError before that."""
        try:
            max_links = raise_descriptor_limit()
            keep_freed_memory()
            claims = self._claimed()
            self._identity.assume(self._config.chroot)
            self._inside = self._config.chroot
            self._log = EventLog(self._reactor, self._log_targets.make(self._config), self._config.log_level)
            try:
                self._serve(ready, claims, max_links)
            finally:
                self._close_stdout()
                self._log.close()
        except StartError as error:
            raise StartError(found_from(self._inside, error.reasons)) from error
        finally:
            self._log_targets.close()
            self._notifier.close()
            self._pool.close()
            if self._stderr is not None:
                self._stderr.close()
            self._reactor.close()

    def _serve(self, ready: Callable[[], None], claims: list[Listener], max_links: int) -> None:
        reactor, config, log = self._reactor, self._config, self._log
        reactor.on_failure(log.failed)
        reactor.lag.tell(_LAG_LOGGED, self._lagged)
        self._tell_circumstances(log.bind())
        resolver = Resolver(reactor)
        shared = Surroundings(
            reactor, resolver, self._pool, LoopGuard(), log, self._stdout, max_links, self._links_changed
        )
        service = self._service = Service(config, shared, self._ended)
        self._controller = Controller(reactor, self._pool, log.bind())
        make_target = self._log_targets.make
        reloader = self._reloader = Reloader(
            reactor, resolver, self._load, make_target, service, self._controller, log, self._notifier, self._inside
        )
        signals = Signals(reactor, {
            signal.SIGTERM: self._stop, signal.SIGINT: self._stop,
            signal.SIGHUP: reloader.request, signal.SIGUSR1: self._reopen,
        })  # fmt: skip
        signals.install()
        try:
            control = self._controller.take(config.control, config.control_mode)
            service.start()
            self._unclaim(claims)
            self._controller.serve(Operator(reactor, service, reloader, log, self._stop))
            self._controller.listen(control, config.control_mode)
            ready()
            self._notifier.ready(service.summary())
            self._feed_watchdog()
            reactor.run()
        finally:
            signals.ignore()

    def _tell_circumstances(self, log: BoundLog) -> None:
        """Log what whoever runs us should know of how we were started."""
        for warning in self._config.warnings:
            log.warning("configuration", warning=warning)
        if self._stale:
            log.warning("pidfile_replaced", pid=self._stale, reason="its owner has ended without removing it")
        absence = self._log_targets.absence(self._config)
        if absence:
            put(sys.stderr, f"relayd: {absence}\n")
        if self._stderr is None and os.geteuid() == 0:
            log.warning("running_as_root", cure="set user in [relayd]")

    # -- ports ----------------------------------------------------------------------------------

    def _claimed(self) -> list[Listener]:
        """Bind every port while there is still the right to; raises StartError with all reasons."""
        claims, reasons = [], []
        for relay in self._config.relays:
            for _, address in relay.listening if relay.enabled else ():
                try:
                    claim = self._pool.take(address, listen_settings(relay))
                    claims.append(claim)
                    if isinstance(address, UnixAddress) and not claim.adopted:
                        self._identity.own(address.path)
                except StartError as error:
                    reasons += [f"[relay {relay.name}] {reason}" for reason in error.reasons]
        if reasons:
            raise StartError(reasons)
        return claims

    def _unclaim(self, claims: list[Listener]) -> None:
        """The relays have taken what was claimed for them."""
        for claim in claims:
            self._pool.give_back(claim)
        for name in self._pool.unclaimed():
            cure = "let a relay listen there, or take it out of the socket unit"
            self._log.bind().warning("socket_unclaimed", address=name, cure=cure)

    # -- events -----------------------------------------------------------------------------------

    def _stop(self) -> None:
        self._reloader.stop()
        self._notifier.stopping()
        self._service.stop()

    def _ended(self) -> None:
        self._controller.close()
        self._reactor.stop()

    def _reopen(self) -> None:
        for relay in self._service.relays:
            relay.reopen_dump()
        try:
            self._log.target.reopen()
        except OSError as error:
            self._log.bind().warning("reopen_failed", file=error.filename, error=error.strerror)
            return
        self._log.bind().info("reopened")

    def _stdout_failed(self, error: OSError) -> None:
        self._log.bind().warning("dump_suspended", file="stdout", error=error.strerror, retry=RETRY_INTERVAL)

    def _close_stdout(self) -> None:
        lost = self._stdout.close()
        if lost:  # the dumps themselves are closed, so they cannot say it
            self._log.bind().warning("dump_lost", file="stdout", chunks=lost)

    def _feed_watchdog(self) -> None:
        if self._notifier.watchdog_interval:
            self._notifier.send("WATCHDOG=1")
            self._reactor.call_later(self._notifier.watchdog_interval, self._feed_watchdog)

    def _links_changed(self) -> None:
        if not self._status_pending:
            self._status_pending = True
            self._reactor.call_later(_STATUS_INTERVAL, self._send_status)

    def _send_status(self) -> None:
        self._status_pending = False
        self._notifier.send(f"STATUS={self._service.summary()}")

    def _lagged(self, seconds: float, ran: str) -> None:
        self._log.bind().burst("loop_lag", seconds=round(seconds, 3), ran=ran)
