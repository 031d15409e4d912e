from __future__ import annotations

from tools.fleet.local import LocalFleet
from tools.fleet.testing import FleetConformance, Toy


class TestLocalFleet(FleetConformance):
    @classmethod
    def fleet(cls, workers: int, gpus: int) -> LocalFleet:
        return LocalFleet(Toy(), workers, [Toy(str(n)) for n in range(gpus)])
