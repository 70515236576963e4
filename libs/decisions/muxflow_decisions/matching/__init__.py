"""Which waiting job goes to which free GPU, and why the others wait."""

from __future__ import annotations

from muxflow_decisions.matching.certificate import Certificate, CertificateError
from muxflow_decisions.matching.devices import Closed, closed
from muxflow_decisions.matching.flow import Matching, match
from muxflow_decisions.matching.model import FreeGpu, JobKey, Need, Offer, WaitingJob, fits
from muxflow_decisions.matching.waiting import FleetGpu, FleetView, why_waiting

__all__ = [
    "Certificate",
    "CertificateError",
    "Closed",
    "FleetGpu",
    "FleetView",
    "FreeGpu",
    "JobKey",
    "Matching",
    "Need",
    "Offer",
    "WaitingJob",
    "closed",
    "fits",
    "match",
    "why_waiting",
]
