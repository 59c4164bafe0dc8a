"""Running the service in the foreground, from a configuration to an exit status."""

from __future__ import annotations

import signal

from relayd.build import Surroundings
from relayd.config.settings import Config
from relayd.net.reactor import Reactor
from relayd.net.resolver import Resolver
from relayd.observe.log import EventLog
from relayd.observe.writer import LossyWriter
from relayd.policy.loops import LoopGuard
from relayd.process.limits import raise_descriptor_limit
from relayd.process.signals import Signals
from relayd.service import Service

_STDOUT = 1
_STDERR = 2


def run_foreground(config: Config) -> None:
    """Run until SIGTERM or SIGINT; log on stderr, dumps on stdout. Raises StartError before anything moves."""
    reactor = Reactor()
    stdout = LossyWriter(reactor, _STDOUT)
    stderr = LossyWriter(reactor, _STDERR)
    log = EventLog(reactor, stderr, config.log_level)
    reactor.on_failure(log.failed)
    shared = Surroundings(reactor, Resolver(reactor), LoopGuard(), log, stdout, raise_descriptor_limit())
    service = Service(config, shared, ended=reactor.stop)
    service.open()
    signals = Signals(reactor, {signal.SIGTERM: service.stop, signal.SIGINT: service.stop})
    signals.install()
    try:
        service.start()
        reactor.run()
    finally:
        signals.restore()
        stdout.flush()
        stderr.flush()
        reactor.close()
