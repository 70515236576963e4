"""What each GPU offers to a job that is placed on it now."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from muxflow.contracts import Gpu, NodeState, Speed
from muxflow_decisions.device.sm_share import WHOLE_DEVICE_PCT, SmSharePolicy, expected_peak_pct, sm_share_pct
from muxflow_decisions.lifecycle import Spots
from muxflow_decisions.matching import FleetGpu, FleetView, Need, Offer, OpenGpu, fits
from muxflow_decisions.speed import PairFacts, assumed
from muxflow_scheduler.desired import GpuKey
from muxflow_scheduler.devices import Devices
from muxflow_scheduler.fleet import Fleet, Node
from muxflow_scheduler.occupancy import Occupancy
from muxflow_scheduler.profiles import Profiles
from muxflow_scheduler.reservations import Reservations

_SHARE_STEP_PCT: Final = 5
_ASSUMED_STEP_PERMILLE: Final = 50
"""GPUs that differ by less than these are alike for a job: fewer classes to match, fewer pairs to predict."""
UNDISTURBED_PERMILLE: Final = 1000
_COUNTED_S: Final = 1.0
"""GPUs are counted anew this often at least: a node falls silent without a word."""


class Offers:
    """GPUs of the fleet, put together from what executors, monitors and profiler tell."""

    def __init__(
        self, fleet: Fleet, devices: Devices, occupancy: Occupancy, profiles: Profiles, *, sm_share: SmSharePolicy
    ) -> None:
        self._fleet = fleet
        self._devices = devices
        self._occupancy = occupancy
        self._profiles = profiles
        self._sm_share = sm_share
        self.reservations = Reservations()
        self._spots: dict[Need, Spots] = {}
        self._counted_s = 0.0

    def open_gpus(self, *, occupied: bool) -> list[OpenGpu]:
        """GPUs that take work; with `occupied` also those on which a job is that could make room."""
        return [
            self._open_gpu(node, node.state, gpu)
            for node, gpu in self._fleet.open_gpus()
            if node.state is not None
            and (occupied or self._occupancy.free(GpuKey(node.name, gpu.uuid)))
            and self._devices.closed(node, gpu.uuid) is None
        ]

    def takes(self, gpu: OpenGpu) -> bool:
        """Whether a GPU still is as it was: its node alive in that session, and nothing closes it."""
        node = self._fleet.nodes.get(gpu.node)
        return (
            node is not None
            and node.state is not None
            and node.session == gpu.session
            and self._fleet.alive(node)
            and not node.state.draining
            and any(each.uuid == gpu.uuid for each in node.gpus)
            and self._devices.closed(node, gpu.uuid) is None
        )

    def why_closed(self, node: Node, gpu: Gpu) -> str | None:
        """Say why no new offline work is placed on a GPU, whether or not it is free; None if it may be."""
        if not self._fleet.alive(node):
            return "its node is not alive"
        if node.state is not None and node.state.draining:
            return "its node is draining"
        found = self._devices.closed(node, gpu.uuid)
        return str(found) if found else None

    def view(self) -> FleetView:
        """Every GPU as it is now."""
        return FleetView(
            tuple(
                FleetGpu(
                    node=node.name,
                    uuid=gpu.uuid,
                    offer=self.offer(state, gpu),
                    alive=self._fleet.alive(node),
                    draining=state.draining,
                    busy=not self._occupancy.free(GpuKey(node.name, gpu.uuid)),
                    closed=self._devices.closed(node, gpu.uuid),
                    reserved_for=self.reservations.holder(GpuKey(node.name, gpu.uuid)),
                )
                for node, state, gpu in self._described()
            )
        )

    def offer(self, state: NodeState, gpu: Gpu) -> Offer:
        """What one GPU of a node offers."""
        key = GpuKey(state.node, gpu.uuid)
        share = self.sm_share(key)
        return Offer.of(
            state,
            gpu,
            self._devices.online(key),
            sm_share_pct=None if share is None else stepped(share),
            assumed_permille=self._assumed_permille(key, gpu),
            quiet=self.quiet(key),
        )

    def at(self, key: GpuKey) -> Offer | None:
        """What a GPU offers that may be anywhere; None if it is not known any more."""
        node, gpu = self._fleet.nodes.get(key.node), self._fleet.gpu(key)
        return None if node is None or node.state is None or gpu is None else self.offer(node.state, gpu)

    def sm_share(self, key: GpuKey) -> int | None:
        """SM share of a job that is placed there now; None where nobody watches the GPU, and MPS need not run."""
        if not self._watched(key):
            return None
        return sm_share_pct(
            forecast_peak_pct=self._peak_pct(key),
            sm_count=None,  # inventories do not tell
            policy=self._sm_share,
        )

    def measuring_share(self, key: GpuKey) -> int | None:
        """SM share of a job that is measured there alone."""
        return WHOLE_DEVICE_PCT if self._watched(key) else None

    def quiet(self, key: GpuKey) -> bool:
        """Whether a job can be measured there: a monitor watches, and has told that no online workload is there."""
        online = self._devices.online(key)
        return self._watched(key) and online is not None and online.workload is None

    def changed(self) -> None:
        """Nodes or devices are not as they were."""
        self._spots.clear()

    def spots(self, need: Need) -> Spots:
        """Count the GPUs of living nodes that fit a job, for the decision whether it is measured."""
        now_s = time.monotonic()
        if now_s - self._counted_s > _COUNTED_S:
            self._spots.clear()
            self._counted_s = now_s
        if need not in self._spots:
            self._spots[need] = self._count(need)
        return self._spots[need]

    def _count(self, need: Need) -> Spots:
        fitting = watched = quiet = 0
        for node, state, gpu in self._described():
            if not self._fleet.alive(node) or not fits(need, Offer.of(state, gpu)):
                continue
            online = self._devices.online(GpuKey(node.name, gpu.uuid))
            fitting += 1
            watched += state.watched
            quiet += state.watched and (online is None or online.workload is None)
        return Spots(fitting=fitting, watched=watched, quiet=quiet)

    def _open_gpu(self, node: Node, state: NodeState, gpu: Gpu) -> OpenGpu:
        return OpenGpu(
            node=node.name,
            uuid=gpu.uuid,
            offer=self.offer(state, gpu),
            session=node.session,
            reserved_for=self.reservations.holder(GpuKey(node.name, gpu.uuid)),
        )

    def _described(self) -> Iterator[tuple[Node, NodeState, Gpu]]:
        for node in self._fleet.nodes.values():
            if node.state is not None:
                for gpu in node.gpus:
                    yield node, node.state, gpu

    def _watched(self, key: GpuKey) -> bool:
        node = self._fleet.nodes.get(key.node)
        return node is not None and node.state is not None and node.state.watched

    def _peak_pct(self, key: GpuKey) -> float | None:
        online = self._devices.online(key)
        gpu = self._fleet.gpu(key)
        if online is None or gpu is None:
            return None
        forecast = self._profiles.online(online.workload, gpu.kind)
        return expected_peak_pct(
            forecast,
            recent_peak_pct=online.activity_peak_pct,
            uncovered_peak_pct=online.uncovered_peak_pct,
            now_ns=time.time_ns(),
        )

    def assumed(self, workload: str | None, gpu_kind: str, *, sm_share_pct: int | None) -> Speed:
        """Speed of a job with this share beside a workload, of which nothing is predicted."""
        profile = self._profiles.online(workload, gpu_kind)
        facts = PairFacts(sm_share_pct=sm_share_pct, online_activity_pct=profile.activity_pct_mean if profile else None)
        return assumed(facts, fits_probability=1.0)

    def _assumed_permille(self, key: GpuKey, gpu: Gpu) -> int:
        if not self._watched(key) or self.quiet(key):
            return UNDISTURBED_PERMILLE
        online = self._devices.online(key)
        workload = online.workload if online else None
        guess = self.assumed(workload, gpu.kind, sm_share_pct=self.sm_share(key))
        permille = int(1000 * guess.normalized_throughput)
        return permille - permille % _ASSUMED_STEP_PERMILLE


def stepped(share_pct: int) -> int:
    """The SM share by which predictions know a GPU."""
    return max(share_pct - share_pct % _SHARE_STEP_PCT, 1)
