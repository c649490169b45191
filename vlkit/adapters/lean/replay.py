"""The early route of a chunk of cached taps, which can be read as often as wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlkit.encoders.staged import Stream


class Replay:
    """A route that gives what the early route gave when its taps were cached.

    Args:
        streams: the taps, shallow to deep, then the stream at the hand-off; a cache opens them on access.
        layers: depths of the taps.
        stop: depth of the hand-off; a tap at that depth is the hand-off's own stream.
    """

    def __init__(self, streams: Sequence[Stream], layers: Sequence[int], stop: int) -> None:
        self._streams, self._shallower = streams, sum(k < stop for k in layers)
        self._places = [*range(self._shallower), *[-1] * (len(layers) - self._shallower), -1]

    def __len__(self) -> int:
        """Number of taps, and one for the hand-off."""
        return len(self._places)

    def open(self, place: int) -> Stream:
        """The stream of tap number ``place``; the last one is the hand-off."""
        return self._streams[self._places[place]]

    def __iter__(self) -> Iterator[tuple[int | None, Stream]]:
        for place in range(self._shallower):
            yield place, self.open(place)
        yield self._shallower if len(self) > self._shallower + 1 else None, self.open(-1)
