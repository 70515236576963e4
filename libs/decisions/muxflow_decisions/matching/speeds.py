"""Predicted speeds of jobs beside online services: one table, small enough to travel with a problem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from muxflow_decisions.matching.model import Need, Offer

Measured = tuple[str, int]
"""What a prediction knows of a job: its profile key and its memory quota in bytes. A row of the table."""

UNKNOWN: Final = 0xFFFF
"""Stands in the table where nothing is predicted."""


class Spot(msgspec.Struct, frozen=True):
    """What a prediction knows of a GPU. A column of the table."""

    kind: str
    memory_bytes: int
    workload: str | None = None
    sm_share_pct: int | None = None


class Speed(msgspec.Struct, frozen=True):
    """How fast one job is expected to be on one GPU."""

    permille: int
    """Normalized throughput in thousandths: 1000 is as fast as alone on that kind. 0 to 65534."""
    fits_permille: int = 1000
    """Probability, in thousandths, that both fit into the device's memory."""


class Speeds(msgspec.Struct, frozen=True, kw_only=True):
    """The table. A row is one unsigned 16-bit number per spot, least byte first; `UNKNOWN` where there is none.

    Whoever keeps one up to date replaces the rows that have changed.
    """

    spots: tuple[Spot, ...] = ()
    permille: dict[Measured, bytes] = {}
    fits_permille: dict[Measured, bytes] = {}
    """Has the rows that `permille` has."""

    @classmethod
    def of(cls, known: Mapping[tuple[Measured, Spot], Speed]) -> Speeds:
        """Make the table from single predictions."""
        spots = tuple(dict.fromkeys(spot for _, spot in known))
        blank = row([None] * len(spots))
        permille = {measured: bytearray(blank) for measured, _ in known}
        fits_permille = {measured: bytearray(blank) for measured, _ in known}
        columns = {spot: slice(2 * number, 2 * number + 2) for number, spot in enumerate(spots)}
        for (measured, spot), speed in known.items():
            permille[measured][columns[spot]] = speed.permille.to_bytes(2, "little")
            fits_permille[measured][columns[spot]] = speed.fits_permille.to_bytes(2, "little")
        return cls(
            spots=spots,
            permille={measured: bytes(found) for measured, found in permille.items()},
            fits_permille={measured: bytes(found) for measured, found in fits_permille.items()},
        )

    def find(self, need: Need, offer: Offer) -> Speed | None:
        """Look one pair up; None if nothing is predicted for it."""
        measured, spot = measured_of(need), spot_of(offer)
        if measured not in self.permille or spot not in self.spots:
            return None
        at = slice(2 * self.spots.index(spot), 2 * self.spots.index(spot) + 2)
        permille = int.from_bytes(self.permille[measured][at], "little")
        if permille == UNKNOWN:
            return None
        return Speed(permille, int.from_bytes(self.fits_permille[measured][at], "little"))

    def permille_of(self, need: Need, offer: Offer) -> int:
        """Tell a pair's normalized throughput in thousandths: what is predicted, else what the offer assumes."""
        speed = self.find(need, offer)
        return offer.assumed_permille if speed is None else speed.permille


def row(values: list[int | None]) -> bytes:
    """Write one row of the table, None where nothing is predicted."""
    return b"".join((UNKNOWN if value is None else value).to_bytes(2, "little") for value in values)


def measured_of(need: Need) -> Measured:
    """Tell which row has a job's predictions."""
    return (need.key, need.memory_bytes)


def spot_of(offer: Offer) -> Spot:
    """Tell which column has a GPU's predictions."""
    return Spot(offer.kind, offer.memory_bytes, offer.workload, offer.sm_share_pct)
