"""Bytes that really went over a network interface, as the kernel counts them.

    with Wire("lo") as wire:
        ...
    wire.sent_bytes

The counter is of the whole machine: other programs that use the interface meanwhile are counted
too. Headers are in it (IP's and TCP's, 52 bytes a packet of up to 64 kB on loopback, and
acknowledgements), and gRPC's framing: messages of some MB show under 1 % of that.
"""

import psutil

from tfspeed.errors import TfspeedError


class Wire:
    """Counts what an interface sends while the block runs.

    On loopback, where workers of one machine meet, what one sends another receives: the count is
    that of all workers together.

    Attributes:
        sent_bytes, sent_packets: None until the block has ended.
    """

    def __init__(self, interface: str = "lo"):
        self.interface = interface
        self.sent_bytes: int | None = None
        self.sent_packets: int | None = None

    def __enter__(self) -> "Wire":
        self._start = self._count()
        return self

    def __exit__(self, *_) -> None:
        end = self._count()
        self.sent_bytes = end.bytes_sent - self._start.bytes_sent
        self.sent_packets = end.packets_sent - self._start.packets_sent

    def _count(self):
        counters = psutil.net_io_counters(pernic=True)
        if self.interface not in counters:
            raise TfspeedError("There is no such network interface.", interface=self.interface,
                               known=sorted(counters))
        return counters[self.interface]
