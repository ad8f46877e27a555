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
_CHUNKS = 4  # of a batch: one is computed while the one before comes back and the next is copied
_CHUNK_PX = 1 << 21  # fewer do not fill a GPU
_ALIGNMENT = 256  # bytes, as of memory that the driver gives
_EVENT_DISABLE_TIMING = 2
_NAME_BYTES = 100


def cuda_device_count() -> int:
    """CUDA devices the driver shows to this process (honours CUDA_VISIBLE_DEVICES); 0 without a driver."""
    driver = _driver()
    if driver is None:
        return 0
    count = ctypes.c_int(0)
    return count.value if driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def all_devices() -> str:
    """ "cuda:0,1,2": the visible devices that are of the first one's model; "cuda:0" where there are none."""
    driver = _driver()
    if driver is None:
        return "cuda:0"
    names = []
    for index in range(cuda_device_count()):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(name, _NAME_BYTES, device)
        names.append(name.value)
    return "cuda:" + (",".join(str(index) for index, name in enumerate(names) if name == names[0]) or "0")


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


def chunk_length(shape: tuple[int, ...]) -> int:
    """How many of (N, H, W, 3) tiles to compute at once."""
    count, height, width, _ = shape
    least = -(-_CHUNK_PX // max(1, height * width))
    return min(count, max(least, -(-count // _CHUNKS)))


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
        stream: address of the stream that computes.

    Raises:
        EngineError: there is no such device, or the driver fails.
    """

    def __init__(self, index: int, asked: str) -> None:
        check_device(index, asked)
        self.index = index
        self._driver = ctypes.CDLL("libcuda.so.1")
        device, self._context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), index)
        name = ctypes.create_string_buffer(_NAME_BYTES)
        self._call("cuDeviceGetName", name, _NAME_BYTES, device)
        self.name = name.value.decode()
        major = ctypes.c_int()
        # 75: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        self._call("cuDeviceGetAttribute", ctypes.byref(major), 75, device)
        self.has_tf32 = major.value >= _TF32_COMPUTE_CAPABILITY
        # The context that the CUDA libraries use too, so that they know its addresses.
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self.enter()
        # 1: CU_STREAM_NON_BLOCKING, so that none of them waits for what others do in the default stream.
        self.stream, self._to_device, self._from_device = (self._made("cuStreamCreate", 1) for _ in range(3))
        self._order = self._made("cuEventCreate", _EVENT_DISABLE_TIMING)
        self._done: list[int] = []
        self._buffers: dict[Hashable, tuple[NDArray[np.uint8], int]] = {}

    def run(
        self,
        tiles: NDArray[np.uint8],
        maps: Mapping[str, NDArray[np.uint8]],
        compute: Callable[[int, int, dict[str, int]], None],
        *,
        group: Hashable = None,
        at_once: bool = False,
    ) -> None:
        """Move tiles to the device, compute, and move the maps back; of many tiles all three at a time.

        Args:
            tiles: uint8, (N, H, W, 3).
            maps: filled; uint8, (N, h, w, C).
            compute: given how many tiles, the address of the first and the addresses for their maps by name,
                it begins to compute in ``stream``.
            group: calls of one group whose arrays have the same sizes use the same addresses.
            at_once: compute all tiles by one call.
        """
        self.enter()
        count = len(tiles) if at_once else chunk_length(tiles.shape)
        source = _Mirrored(self, (group, None), tiles, count)
        targets = {name: _Mirrored(self, (group, name), target, count) for name, target in maps.items()}
        chunks = range(-(-len(tiles) // count)) if count else range(0)
        copies = [begin_copy(source.here(chunk), source.part(chunk)) for chunk in chunks]
        try:
            for chunk in chunks:
                offset, here = 0, source.here(chunk).reshape(-1)
                # Each part is on its way while the next ones are copied.
                for size, copied in copies[chunk]:
                    copied.result()
                    self.upload(source.address(chunk) + offset, here[offset:], size)
                    offset += size
                self.compute_after_uploads()
                addresses = {name: target.address(chunk) for name, target in targets.items()}
                compute(len(source.part(chunk)), source.address(chunk), addresses)
                self.download_after_compute()
                for target in targets.values():
                    self.download(target.here(chunk), target.address(chunk), target.here(chunk).nbytes)
                self.mark(chunk)
            for chunk in chunks:
                self.reach(chunk)
                copies += [begin_copy(target.part(chunk), target.here(chunk)) for target in targets.values()]
        finally:
            # Nothing may still be using buffers or arrays, not even after a failure.
            for _, copied in (part for parts in copies for part in parts):
                copied.result()
            self.wait()

    def _made(self, function: str, flags: int) -> int:
        """The address of a stream or event."""
        made = ctypes.c_void_p()
        self._call(function, ctypes.byref(made), flags)
        return made.value or 0

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
        source, stream = ctypes.c_void_p(host.ctypes.data), ctypes.c_void_p(self._to_device)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_void_p(device), source, ctypes.c_size_t(size), stream)

    def download(self, host: NDArray[np.uint8], device: int, size: int) -> None:
        """Begin to copy from the device."""
        target, stream = ctypes.c_void_p(host.ctypes.data), ctypes.c_void_p(self._from_device)
        self._call("cuMemcpyDtoHAsync_v2", target, ctypes.c_void_p(device), ctypes.c_size_t(size), stream)

    def compute_after_uploads(self) -> None:
        """What is computed from now on waits for the uploads so far."""
        self._follow(self._to_device, self.stream)

    def download_after_compute(self) -> None:
        """Downloads from now on wait for what is being computed."""
        self._follow(self.stream, self._from_device)

    def _follow(self, first: int, second: int) -> None:
        order = ctypes.c_void_p(self._order)
        self._call("cuEventRecord", order, ctypes.c_void_p(first))
        self._call("cuStreamWaitEvent", ctypes.c_void_p(second), order, 0)

    def mark(self, number: int) -> None:
        """Remember the downloads so far for ``reach``."""
        while len(self._done) <= number:
            self._done.append(self._made("cuEventCreate", _EVENT_DISABLE_TIMING))
        self._call("cuEventRecord", ctypes.c_void_p(self._done[number]), ctypes.c_void_p(self._from_device))

    def reach(self, number: int) -> None:
        """Return once what was marked with this number is done."""
        self._call("cuEventSynchronize", ctypes.c_void_p(self._done[number]))

    def wait(self) -> None:
        """Return once all that was begun is done."""
        for stream in (self._to_device, self.stream, self._from_device):
            self._call("cuStreamSynchronize", ctypes.c_void_p(stream))


class _Mirrored:
    """An array with its counterparts here, page-locked, and on the device, in chunks of ``count`` along N."""

    def __init__(self, device: CudaDevice, key: Hashable, array: NDArray[np.uint8], count: int) -> None:
        self._array, self._count = array, count
        each = array[:count].nbytes
        self._step = -(-each // _ALIGNMENT) * _ALIGNMENT
        chunks = -(-len(array) // count) if count else 0
        self._host, self._address = device.buffers(key, chunks * self._step)

    def part(self, chunk: int) -> NDArray[np.uint8]:
        return self._array[chunk * self._count : (chunk + 1) * self._count]

    def here(self, chunk: int) -> NDArray[np.uint8]:
        part, start = self.part(chunk), chunk * self._step
        return self._host[start : start + part.nbytes].reshape(part.shape)

    def address(self, chunk: int) -> int:
        return self._address + chunk * self._step
