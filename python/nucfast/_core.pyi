from typing import Any

from numpy.typing import NDArray

# components
def label_components(image: NDArray[Any], out: NDArray[Any], connectivity: int, threads: int) -> int: ...

# distance
def distance_transform(image: NDArray[Any], out: NDArray[Any], threads: int) -> None: ...

# split
def split_instances(height: NDArray[Any], mask: NDArray[Any], min_rise: int, out: NDArray[Any]) -> int: ...

# watershed
def watershed(elevation: NDArray[Any], mask: NDArray[Any], labels: NDArray[Any]) -> None: ...
