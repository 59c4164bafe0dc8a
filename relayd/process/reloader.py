"""Going over to the configuration as it is now, whoever asked for it."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Mapping

from relayd.address import TcpAddress
from relayd.config.settings import Config
from relayd.controller import Controller
from relayd.errors import ConfigError, StartError
from relayd.net.lookups import Lookups
from relayd.net.reactor import Reactor
from relayd.net.resolver import Answer, Resolver
from relayd.observe.log import EventLog
from relayd.observe.targets import LogTarget
from relayd.process.privileges import found_from
from relayd.process.systemd import Notifier
from relayd.reload import Plan
from relayd.service import Service

# Seconds for the names to listen on: a second name server is asked after five of them, and relayctl waits for ten.
_LOOK_UP_TIMEOUT = 8.0

Reasons = tuple[str, ...]  # why a reload was not done, none where it was


class Reloader:
    """Reads the configuration again, and applies it whole or not at all.

    New names to listen on are looked up in between, while the streams flow.  Whoever asks meanwhile has the
    file read anew, and is answered together with those who asked before.
    """

    def __init__(
        self,
        reactor: Reactor,
        resolver: Resolver,
        load: Callable[[], Config] | None,
        make_target: Callable[[Config], LogTarget],
        service: Service,
        controller: Controller,
        log: EventLog,
        notifier: Notifier,
        inside: str = "",
    ) -> None:
        """`load` is None where there is no file to read again; `inside` is the chroot we are in, "" for none."""
        self._reactor = reactor
        self._resolver = resolver
        self._load = load
        self._make_target = make_target
        self._service = service
        self._controller = controller
        self._log = log
        self._notifier = notifier
        self._inside = inside
        self._pending = False
        self._lookups: Lookups | None = None
        self._asking: list[Callable[[Reasons], None]] = []
        self.plan: Plan | None = None  # what the last reload that was done has changed
        self.failure = ""  # why the last reload was not done, "" where it was
        self.loaded_at = time.time()  # wall clock, for people

    def request(self) -> None:
        """Reload in a turn of its own: however often it is asked for meanwhile, once is enough."""
        if not self._pending:
            self._pending = True
            self._reactor.call_later(0.0, self._requested)

    def _requested(self) -> None:
        self._pending = False
        self.reload(lambda reasons: None)

    def reload(self, ended: Callable[[Reasons], None]) -> None:
        """Reload; `ended(reasons)` is called when that is over, at once where no name is to be looked up.

        All of it is logged.
        """
        if self._service.stopping:
            ended(("the service is stopping",))
            return
        self._asking.append(ended)
        self._forget_lookups()
        self._notifier.reloading()
        self._attempt(self._read)

    def stop(self) -> None:
        """The service is to stop: whoever waits for a reload is told so."""
        if self._forget_lookups():
            self._end(("the service is stopping",))

    def _forget_lookups(self) -> bool:
        """Drop the look-ups that are under way; return whether there were any."""
        lookups, self._lookups = self._lookups, None
        if lookups is not None:
            lookups.cancel()
        return lookups is not None

    def _attempt(self, step: Callable[[], None]) -> None:
        """Do a step of the reload, which is over where that raises."""
        try:
            step()
        except ConfigError as error:
            self._end(tuple(map(str, error.problems)))
        except StartError as error:
            self._end(error.reasons)
        except Exception as error:  # nobody has thought of it; what runs goes on
            self._log.failed(error)
            self._end((f"internal error, its traceback is in the log: {error!r}",))

    def _read(self) -> None:
        if self._load is None:
            raise StartError(["there is no configuration file to read again"])
        config = self._load()
        addresses = self._service.to_look_up(config)
        if not addresses:
            self._go_over(config, {})
            return

        def answered(answers: Mapping[TcpAddress, Answer]) -> None:
            self._lookups = None
            self._attempt(functools.partial(self._go_over, config, answers))

        self._lookups = Lookups(self._reactor, self._resolver, addresses, _LOOK_UP_TIMEOUT, answered)

    def _go_over(self, config: Config, answers: Mapping[TcpAddress, Answer]) -> None:
        plan = self._apply(config, answers)
        self.loaded_at = time.time()
        for warning in config.warnings:
            self._log.bind().warning("configuration", warning=warning)
        self._log.bind().info("reloaded", changes=_summary(plan))
        self._end(())

    def _apply(self, config: Config, answers: Mapping[TcpAddress, Answer]) -> Plan:
        """Raises StartError, or what nobody has thought of, and then nothing has changed."""
        before = self._service.config
        moved = (config.log, config.log_format) != (before.log, before.log_format)
        target = self._make_target(config) if moved else self._log.target
        listener = None
        try:
            listener = self._controller.take(config.control, config.control_mode)
            plan = self._service.reload(config, answers)
        except BaseException:
            self._controller.give_back(listener)
            if moved:
                target.close()
            raise
        self._controller.listen(listener, config.control_mode)
        for gone in plan.removed:
            self._controller.end_dumps(gone.name)
        if moved:
            self._log.target.close()
        self._log.target, self._log.level = target, config.log_level
        for key in plan.needs_restart:
            self._log.bind().warning("needs_restart", key=key)
        self.plan = plan
        return plan

    def _end(self, reasons: Reasons) -> None:
        """The reload is over: tell everybody."""
        # The INI parser's objects refer to each other: megabytes of them would stay until the garbage collector
        # comes, which an idle daemon gives no reason to.
        gc.collect()
        self._notifier.ready(self._service.summary())  # or the manager would wait for ever
        reasons = tuple(found_from(self._inside, reasons))
        self.failure = reasons[0] if reasons else ""
        for reason in reasons:
            self._log.bind().error("reload_failed", error=reason)
        asking, self._asking = self._asking, []
        for ended in asking:
            self._reactor.guard(functools.partial(ended, reasons))


def _summary(plan: Plan) -> str:
    counts = {"added": plan.added, "removed": plan.removed, "changed": plan.changed, "unchanged": plan.unchanged}
    return ", ".join(f"{len(relays)} {what}" for what, relays in counts.items())
