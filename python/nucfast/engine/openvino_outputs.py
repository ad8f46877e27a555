"""Maps whose last step, from channels to pixels, OpenVINO is spared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Shuffled:
    """A map that lies in the channels of an output: in ``block`` squared of them, from ``first`` on.

    Channel ``first + block * y + x`` holds pixel (y, x) of every block x block pixels (Shi et al.: Real-time
    single image and video super-resolution, CVPR 2016).
    """

    output: str
    first: int
    block: int

    @property
    def channels(self) -> slice:
        """Where it lies."""
        return slice(self.first, self.first + self.block**2)

    def shape(self, planes: Sequence[int]) -> tuple[int, ...]:
        """(N, H, W, 1) of the map, from (N, channels, h, w) of the output."""
        count, _, height, width = planes
        return count, height * self.block, width * self.block, 1


def cut_off_shuffles(model: Any) -> Mapping[str, Shuffled]:
    """Let a model end before its slices of channels and their shuffle to pixels.

    In a model of dynamic shapes OpenVINO's slices run on one core and take fresh memory for every tile: with
    the shuffle 9 % of he-fast's time in int8, on a processor with AVX2.

    Args:
        model: an ``openvino.Model``; changed.

    Returns:
        What is now to be done with its outputs, by the names of the maps that it no longer has.
    """
    found = {}
    for result in list(model.get_results()):
        transpose = _maker(result, "Transpose")
        shuffle = _maker(transpose, "DepthToSpace")
        cut = _maker(shuffle, "Slice")
        if cut is None:
            continue
        order, (begin, end, step, axis) = _constants(transpose), _constants(cut)
        attributes = shuffle.get_attributes()
        block = int(attributes["block_size"])
        if attributes["mode"] != "depth_first" or order != [[0, 2, 3, 1]]:
            continue
        if (step, axis) != ([1], [1]) or not begin or end != [begin[0] + block**2]:
            continue
        source = cut.input_value(0)
        if not any(port.get_node().get_type_name() == "Result" for port in source.get_target_inputs()):
            model.add_outputs([source])
        found[result.input_value(0).get_any_name()] = Shuffled(source.get_any_name(), begin[0], block)
        model.remove_result(result)
    return found


def _maker(node: Any, kind: str) -> Any:
    """The node that makes the first input of ``node``, if there is one and it is of this kind."""
    maker = None if node is None else node.input_value(0).get_node()
    return maker if maker is not None and maker.get_type_name() == kind else None


def _constants(node: Any) -> list[list[int]]:
    """The values of all inputs but the first; [] for one that is not constant."""
    values = []
    for port in node.input_values()[1:]:
        maker = port.get_node()
        if maker.get_type_name() == "Broadcast":  # the steps of a slice, where the file states none
            maker = maker.input_value(0).get_node()
        values.append(np.ravel(maker.get_data()).tolist() if maker.get_type_name() == "Constant" else [])
    return values
