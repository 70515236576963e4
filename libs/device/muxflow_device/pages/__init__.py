"""Pages: small files in shared memory through which the processes of one node meet without a lock or a message.

==============  ==========================  ================================
page            is written through          is read through
==============  ==========================  ================================
device page     `DevicePageWriter`          `DevicePage`
job control     `JobControlWriter`          `JobControl`
job page        xCUDA (`JobPage.create`)    `JobPage`
beacon pages    xCUDA                       `Beacons`
==============  ==========================  ================================

`xcuda-preload/include/muxflow_pages.h` says what is in them.
"""

from __future__ import annotations

from muxflow_device.pages.beacon import Beacons, BeaconView
from muxflow_device.pages.control import JobControl, JobControlWriter, JobLimits, JobOrder
from muxflow_device.pages.device import DevicePage, DevicePageWriter, DeviceReport, DeviceView
from muxflow_device.pages.errors import PageError, PageInUseError, PageLostError
from muxflow_device.pages.job import JobPage, JobUsage, ProcessSlot

__all__ = [
    "BeaconView",
    "Beacons",
    "DevicePage",
    "DevicePageWriter",
    "DeviceReport",
    "DeviceView",
    "JobControl",
    "JobControlWriter",
    "JobLimits",
    "JobOrder",
    "JobPage",
    "JobUsage",
    "PageError",
    "PageInUseError",
    "PageLostError",
    "ProcessSlot",
]
