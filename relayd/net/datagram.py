"""Sending datagrams to a Unix socket that may not be there: syslog, the journal, the service manager."""

from __future__ import annotations

import os
import socket

_OUT_OF_SIGHT = (FileNotFoundError, NotADirectoryError, PermissionError, ConnectionRefusedError)


class DatagramSender:
    """Sends without ever waiting; nothing depends on its being heard."""

    def __init__(self, address: str) -> None:
        """`address` is a path, or with a NUL in front an abstract name, unix(7).

        Who has it now is kept in mind, for the time when it leads nowhere: inside a chroot, under another user.
        """
        self.absence = ""  # why nobody was there at the beginning, "" where somebody was
        self.full = False  # whether the last datagram was lost for want of room: somebody is there, who may yet take it
        self._address = address
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        try:
            self._sock.connect(address)
        except OSError as error:
            self.absence = os.strerror(error.errno or 0)

    def send(self, data: bytes) -> bool:
        """Send one datagram; whether somebody took it. The address is looked up anew: a restart is survived."""
        self.full = False
        try:
            try:
                self._sock.sendto(data, self._address)
            except _OUT_OF_SIGHT:
                self._sock.send(data)
        except OSError as error:
            self.full = isinstance(error, BlockingIOError)
            return False
        return True

    def close(self) -> None:
        """Send no more."""
        self._sock.close()
