"""The little of the CUDA driver that engines need: devices, a stream, and memory here and there."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucfast.engine.threads import available_cpus
from nucfast.errors import EngineError

_PART_BYTES = 4 << 20  # what one thread copies in half a millisecond
_MAX_COPIERS = 8
_TF32_COMPUTE_CAPABILITY = 8  # Ampere


def cuda_device_count() -> int:
    """CUDA devices the driver shows to this process (honours CUDA_VISIBLE_DEVICES); 0 without a driver."""
    driver = _driver()
    if driver is None:
        return 0
    count = ctypes.c_int(0)
    return count.value if driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def check_device(index: int, asked: str) -> None:
    """Raise EngineError, which begins with what was ``asked`` for, unless there is CUDA device ``index``."""
    count = cuda_device_count()
    if index >= count:
        found = "no CUDA device is visible" if count == 0 else f"there are {count} CUDA devices, from 0"
        raise EngineError(
            f"{asked}: {found}; check nvidia-smi and CUDA_VISIBLE_DEVICES, or use device cpu with engine auto"
        )


def _driver() -> ctypes.CDLL | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


@cache
def _copiers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_MAX_COPIERS, available_cpus()), "nucfast-copy")


def begin_copy(target: NDArray[np.uint8], source: NDArray[np.uint8]) -> list[tuple[int, Future[None]]]:
    """Copy (N, H, W, C) arrays of one shape by several threads: one alone has 8 GB/s, and a GPU waits for it.

    Returns:
        The bytes of each part and when it is done, in the order of the array.
    """
    if source.size == 0:
        return []
    rows = max(1, _PART_BYTES // (source.nbytes // (source.shape[0] * source.shape[1])))
    parts = [
        (index, slice(top, top + rows))
        for index in range(source.shape[0])
        for top in range(0, source.shape[1], rows)
    ]
    return [(source[part].nbytes, _copiers().submit(np.copyto, target[part], source[part])) for part in parts]


class CudaDevice:
    """A device with a stream, and buffers in pairs: page-locked memory here, memory there.

    Page-locked, because the driver copies anything else through such a buffer of its own. Not for several
    threads at once.

    Args:
        index: which device.
        asked: what errors begin with.

    Attributes:
        name: the device's, such as "NVIDIA H200".
        has_tf32: whether its convolutions can round their inputs to TF32.
        stream: address of the stream that copies are ordered in.

    Raises:
        EngineError: there is no such device, or the driver fails.
    """

    def __init__(self, index: int, asked: str) -> None:
        check_device(index, asked)
        self.index = index
        self._driver = ctypes.CDLL("libcuda.so.1")
        device, self._context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), index)
        name = ctypes.create_string_buffer(100)
        self._call("cuDeviceGetName", name, len(name), device)
        self.name = name.value.decode()
        major = ctypes.c_int()
        # 75: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        self._call("cuDeviceGetAttribute", ctypes.byref(major), 75, device)
        self.has_tf32 = major.value >= _TF32_COMPUTE_CAPABILITY
        # The context that the CUDA libraries use too, so that they know its addresses.
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self.enter()
        self._call("cuStreamCreate", ctypes.byref(stream), 0)
        self.stream = stream.value or 0
        self._buffers: dict[Hashable, tuple[NDArray[np.uint8], int]] = {}

    def run(
        self,
        tiles: NDArray[np.uint8],
        maps: Mapping[str, NDArray[np.uint8]],
        compute: Callable[[int, dict[str, int]], None],
        *,
        group: Hashable = None,
    ) -> None:
        """Move tiles to the device, compute, and move the maps back.

        Args:
            tiles: uint8, any shape.
            maps: filled; uint8.
            compute: given the address of the tiles and the addresses for the maps by name, it computes in
                ``stream``, or in another once ``wait`` has returned, which it then waits for.
            group: calls of one group whose arrays have the same sizes use the same addresses.
        """
        self.enter()
        host, source = self.buffers((group, None), tiles.nbytes)
        offset = 0
        # Each part is on its way while the next ones are copied.
        for size, copied in begin_copy(host[: tiles.nbytes].reshape(tiles.shape), tiles):
            copied.result()
            self.upload(source + offset, host[offset:], size)
            offset += size
        pairs = {name: self.buffers((group, name), target.nbytes) for name, target in maps.items()}
        compute(source, {name: address for name, (_, address) in pairs.items()})
        for name, (host, address) in pairs.items():
            self.download(host, address, maps[name].nbytes)
        self.wait()
        copies = [
            copied
            for name, target in maps.items()
            for _, copied in begin_copy(target, pairs[name][0][: target.nbytes].reshape(target.shape))
        ]
        for copied in copies:
            copied.result()

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._driver, function)(*arguments)
        if code != 0:
            raise EngineError(f"the CUDA driver failed: {function} returned {code}")

    def enter(self) -> None:
        """Make the device current in this thread."""
        self._call("cuCtxSetCurrent", self._context)

    def buffers(self, key: Hashable, size: int) -> tuple[NDArray[np.uint8], int]:
        """(page-locked array, device address) of at least this many bytes, kept from call to call."""
        found = self._buffers.get(key)
        if found is None or found[0].size < size:
            if found is not None:
                del self._buffers[key]
                self._call("cuMemFreeHost", ctypes.c_void_p(found[0].ctypes.data))
                self._call("cuMemFree_v2", ctypes.c_void_p(found[1]))
            host, device = ctypes.c_void_p(), ctypes.c_void_p()
            self._call("cuMemHostAlloc", ctypes.byref(host), ctypes.c_size_t(size), 0)
            self._call("cuMemAlloc_v2", ctypes.byref(device), ctypes.c_size_t(size))
            array = np.ctypeslib.as_array(ctypes.cast(host, ctypes.POINTER(ctypes.c_uint8)), (size,))
            found = self._buffers[key] = array, device.value or 0
        return found

    def upload(self, device: int, host: NDArray[np.uint8], size: int) -> None:
        """Begin to copy to the device."""
        source, stream = ctypes.c_void_p(host.ctypes.data), ctypes.c_void_p(self.stream)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_void_p(device), source, ctypes.c_size_t(size), stream)

    def download(self, host: NDArray[np.uint8], device: int, size: int) -> None:
        """Begin to copy from the device."""
        target, stream = ctypes.c_void_p(host.ctypes.data), ctypes.c_void_p(self.stream)
        self._call("cuMemcpyDtoHAsync_v2", target, ctypes.c_void_p(device), ctypes.c_size_t(size), stream)

    def wait(self) -> None:
        """Return once all that was begun is done."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(self.stream))
