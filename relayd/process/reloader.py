"""Going over to the configuration as it is now, whoever asked for it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

from relayd.config.settings import Config
from relayd.controller import Controller
from relayd.errors import ConfigError, StartError
from relayd.net.reactor import Reactor
from relayd.observe.log import EventLog
from relayd.observe.targets import LogTarget
from relayd.process.systemd import Notifier
from relayd.reload import Plan
from relayd.service import Service


class Reloader:
    """Reads the configuration again, and applies it whole or not at all."""

    def __init__(
        self,
        reactor: Reactor,
        load: Callable[[], Config] | None,
        make_target: Callable[[Config], LogTarget],
        service: Service,
        controller: Controller,
        log: EventLog,
        notifier: Notifier,
    ) -> None:
        """`load` is None where there is no file to read again."""
        self._reactor = reactor
        self._load = load
        self._make_target = make_target
        self._service = service
        self._controller = controller
        self._log = log
        self._notifier = notifier
        self._pending = False
        self.failure = ""  # why the last reload was not done, "" where it was
        self.loaded_at = time.time()  # wall clock, for people

    def request(self) -> None:
        """Reload in a turn of its own: however often it is asked for meanwhile, once is enough."""
        if not self._pending:
            self._pending = True
            self._reactor.call_later(0.0, self._requested)

    def _requested(self) -> None:
        self._pending = False
        self.reload()

    def reload(self) -> tuple[str, ...]:
        """Reload now; return the reasons why it was not done, none where it was. All of it is logged."""
        log = self._log.bind()
        if self._service.stopping:
            return ("the service is stopping",)
        self._notifier.reloading()
        reasons: tuple[str, ...] = ()
        try:
            plan = self._apply()
            self.loaded_at = time.time()
            log.info("reloaded", changes=_summary(plan))
        except ConfigError as error:
            reasons = tuple(map(str, error.problems))
        except StartError as error:
            reasons = error.reasons
        except Exception as error:  # nobody has thought of it; what runs goes on
            self._log.failed(error)
            reasons = (f"internal error, its traceback is in the log: {error!r}",)
        finally:
            # The INI parser's objects refer to each other: megabytes of them would stay until the garbage collector
            # comes, which an idle daemon gives no reason to.
            gc.collect()
            self._notifier.ready(self._service.summary())  # or the manager would wait for ever
        self.failure = reasons[0] if reasons else ""
        for reason in reasons:
            log.warning("reload_failed", error=reason)
        return reasons

    def _apply(self) -> Plan:
        """Raises ConfigError, StartError or what nobody has thought of, and then nothing has changed."""
        if self._load is None:
            raise StartError(["there is no configuration file to read again"])
        config, before = self._load(), self._service.config
        moved = (config.log, config.log_format) != (before.log, before.log_format)
        target = self._make_target(config) if moved else self._log.target
        listener = None
        try:
            listener = self._controller.take(config.control, config.control_mode)
            plan = self._service.reload(config)
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
        return plan


def _summary(plan: Plan) -> str:
    counts = {"added": plan.added, "removed": plan.removed, "changed": plan.changed, "unchanged": plan.unchanged}
    return ", ".join(f"{len(relays)} {what}" for what, relays in counts.items())
