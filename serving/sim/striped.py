"""Striped: bytes that come from several storage servers at once, an equal share from each."""

from serving.core.clock import Clock, Signal
from serving.core.ports import Transfer
from serving.units import Bytes


class Striped:
    """A Transfer whose byte ranges go round its stripes, so that the first n bytes are there when each stripe has its
    share of n (HydraServe sheet, sections 2.3 and 2.4: two stores, reads of 32 MB)."""

    def __init__(self, clock: Clock, stripes: tuple[Transfer, ...]) -> None:
        self._clock = clock
        self._stripes = stripes
        self.done = self._all([stripe.done for stripe in stripes])

    def reached(self, num_bytes: Bytes) -> Signal:
        """Fires when so many bytes have arrived; more than the size counts as the size."""
        share = num_bytes / len(self._stripes)
        return self._all([stripe.reached(share) for stripe in self._stripes])

    def cancel(self) -> None:
        """Stop every stripe here; once all are done this does nothing."""
        for stripe in self._stripes:
            stripe.cancel()

    def release(self) -> None:
        """Host memory is accounted for by its owner; there are no bytes to let go of."""

    def _all(self, signals: list[Signal]) -> Signal:
        """Fires when all of them have."""
        every = Signal(self._clock)
        open_ = [signal for signal in signals if not signal.fired]
        left = len(open_)

        def one_more(value: object) -> None:
            nonlocal left
            del value  # of the signal
            left -= 1
            if not left:
                every.fire()

        for signal in open_:
            signal.wait(one_more)
        if not open_:
            every.fire()
        return every
