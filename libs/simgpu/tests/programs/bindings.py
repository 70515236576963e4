"""The same driver through `cuda.bindings.driver`: it asks for every entry point by version, and passes structs."""

from typing import Any

import numpy as np
from cuda.bindings import driver

from cuda_calls import KERNELS, near


def _ok(result: tuple[Any, ...]) -> Any:
    error, *values = result
    assert error == driver.CUresult.CUDA_SUCCESS, error
    return values[0] if len(values) == 1 else tuple(values)


def _module() -> Any:
    _ok(driver.cuInit(0))
    _ok(driver.cuCtxSetCurrent(_ok(driver.cuDevicePrimaryCtxRetain(0))))
    return _ok(driver.cuModuleLoadData(KERNELS.read_bytes() + b"\0"))


def _function(name: bytes) -> Any:
    return _ok(driver.cuModuleGetFunction(_module(), name))


def _arguments(*values: int) -> tuple[Any, Any]:
    """Values, to be kept, and the addresses of them."""
    kept = [np.array([value], dtype=np.uint64) for value in values]
    return kept, np.array([value.ctypes.data for value in kept], dtype=np.uint64)


def devices_are_found() -> None:
    _ok(driver.cuInit(0))
    assert _ok(driver.cuDeviceGetCount()) == 1
    assert _ok(driver.cuDeviceGetName(64, 0)).rstrip(b"\0 ").startswith(b"Tesla T4")
    uuid = _ok(driver.cuDeviceGetUuid(0))
    assert len(bytes(uuid.bytes)) == 16
    attribute = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
    assert _ok(driver.cuDeviceGetAttribute(attribute, 0)) == 40


def kernels_are_launched_and_timed() -> None:
    kernel = _function(b"spin")
    stream = _ok(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
    start, end = _ok(driver.cuEventCreate(0)), _ok(driver.cuEventCreate(0))
    kept = _arguments(20_000_000), _arguments(3_000_000)
    (_, before), (_, measured) = kept
    _ok(driver.cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 0, stream, before.ctypes.data, 0))
    _ok(driver.cuEventRecord(start, stream))
    _ok(driver.cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 0, stream, measured.ctypes.data, 0))
    _ok(driver.cuEventRecord(end, stream))
    _ok(driver.cuStreamSynchronize(stream))
    assert near(_ok(driver.cuEventElapsedTime(start, end)), 3)


def a_launch_with_a_configuration_may_be_cooperative() -> None:
    kernel = _function(b"spin")
    attribute = driver.CUlaunchAttribute()
    attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
    attribute.value.cooperative = 1
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = 640, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = 32, 1, 1
    config.attrs, config.numAttrs = [attribute], 1
    _kept, addresses = _arguments(1000)
    _ok(driver.cuLaunchKernelEx(config, kernel, addresses.ctypes.data, 0))
    config.gridDimX = 641
    (refused,) = driver.cuLaunchKernelEx(config, kernel, addresses.ctypes.data, 0)
    assert refused == driver.CUresult.CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE
    _ok(driver.cuCtxSynchronize())


def graphs_are_captured_and_their_nodes_read() -> None:
    kernel = _function(b"spin")
    stream = _ok(driver.cuStreamCreate(1))
    _kept, addresses = _arguments(1000)
    _ok(driver.cuStreamBeginCapture(stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL))
    _ok(driver.cuLaunchKernel(kernel, 7, 1, 1, 64, 1, 1, 0, stream, addresses.ctypes.data, 0))
    status = _ok(driver.cuStreamGetCaptureInfo(stream))[0]
    assert status == driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE
    graph = _ok(driver.cuStreamEndCapture(stream))
    nodes, count = _ok(driver.cuGraphGetNodes(graph, 4))
    assert count == 1
    assert _ok(driver.cuGraphNodeGetType(nodes[0])) == driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL
    parameters = _ok(driver.cuGraphKernelNodeGetParams(nodes[0]))
    assert (parameters.gridDimX, parameters.blockDimX) == (7, 64)
    executable = _ok(driver.cuGraphInstantiate(graph, 0))
    _ok(driver.cuGraphLaunch(executable, stream))
    _ok(driver.cuStreamSynchronize(stream))


def boxes_are_copied_in_three_dimensions() -> None:
    _module()
    source = np.arange(4 * 3 * 8, dtype=np.uint8).reshape(4, 3, 8)
    back = np.zeros_like(source)
    address = _ok(driver.cuMemAlloc(4 * 5 * 16))
    box = driver.CUDA_MEMCPY3D()
    box.srcMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_HOST
    box.srcHost, box.srcPitch, box.srcHeight = source.ctypes.data, 8, 3
    box.dstMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
    box.dstDevice, box.dstPitch, box.dstHeight = address, 16, 5
    box.WidthInBytes, box.Height, box.Depth = 8, 3, 4
    _ok(driver.cuMemcpy3D(box))
    whole = np.zeros((4, 5, 16), dtype=np.uint8)
    _ok(driver.cuMemcpyDtoH(whole.ctypes.data, address, whole.nbytes))
    back[:] = whole[:, :3, :8]
    assert (back == source).all()
    assert (whole[:, 3:, :] == 0).all()


def virtual_memory_is_mapped() -> None:
    _module()
    properties = driver.CUmemAllocationProp()
    properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = 0
    flags = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
    size = _ok(driver.cuMemGetAllocationGranularity(properties, flags))
    handle = _ok(driver.cuMemCreate(size, properties, 0))
    address = _ok(driver.cuMemAddressReserve(size, 0, 0, 0))
    _ok(driver.cuMemMap(address, size, 0, handle, 0))
    access = driver.CUmemAccessDesc()
    access.location = properties.location
    access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    _ok(driver.cuMemSetAccess(address, size, [access], 1))
    _ok(driver.cuMemsetD32(address, 9, size // 4))
    back = np.zeros(4, dtype=np.uint32)
    _ok(driver.cuMemcpyDtoH(back.ctypes.data, int(address) + size - 16, 16))
    assert (back == 9).all()


def pools_have_attributes() -> None:
    _module()
    pool = _ok(driver.cuDeviceGetDefaultMemPool(0))
    threshold = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
    _ok(driver.cuMemPoolSetAttribute(pool, threshold, driver.cuuint64_t(1 << 20)))
    assert int(_ok(driver.cuMemPoolGetAttribute(pool, threshold))) == 1 << 20


def arrays_have_descriptors() -> None:
    _module()
    descriptor = driver.CUDA_ARRAY3D_DESCRIPTOR()
    descriptor.Width, descriptor.Height, descriptor.Depth = 16, 8, 2
    descriptor.Format, descriptor.NumChannels = driver.CUarray_format.CU_AD_FORMAT_FLOAT, 4
    array = _ok(driver.cuArray3DCreate(descriptor))
    assert _ok(driver.cuArray3DGetDescriptor(array)).Depth == 2
    _ok(driver.cuArrayDestroy(array))


def errors_have_names() -> None:
    _ok(driver.cuInit(0))
    assert _ok(driver.cuGetErrorName(driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY)) == b"CUDA_ERROR_OUT_OF_MEMORY"
    for result in driver.CUresult:
        assert _ok(driver.cuGetErrorName(result)) == result.name.encode()


def what_is_not_simulated_says_so() -> None:
    _module()
    (refused, _) = driver.cuGreenCtxCreate(None, 0, 0)
    assert refused == driver.CUresult.CUDA_ERROR_NOT_SUPPORTED
