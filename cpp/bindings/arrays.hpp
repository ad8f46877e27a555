// The only place that looks into NumPy arrays. A view that leaves this file has been checked for dtype,
// dimensions, shape and C order; nothing here copies or casts.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <vector>

#include "nucfast/view.hpp"

namespace nucfast::bindings {

namespace py = pybind11;

using Shape = std::vector<py::ssize_t>;

inline std::string to_string(const Shape& shape) {
    std::string text = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + (shape.size() == 1 ? ",)" : ")");
}

inline Shape shape_of(const py::array& array) {
    return Shape(array.shape(), array.shape() + array.ndim());
}

// Throws TypeError or ValueError, naming the argument, unless `array` is a C-ordered T array of `ndim`
// dimensions and, where given, of `shape`.
template <typename T>
void expect(const py::array& array, const char* name, py::ssize_t ndim, const std::optional<Shape>& shape) {
    const std::string who(name);
    if (!py::dtype::of<T>().is(array.dtype()) && !array.dtype().equal(py::dtype::of<T>())) {
        throw py::type_error(who + ": expected " + py::str(py::dtype::of<T>()).cast<std::string>() +
                             ", got " + py::str(array.dtype()).cast<std::string>());
    }
    if (array.ndim() != ndim) {
        throw py::value_error(who + ": expected " + std::to_string(ndim) + " dimensions, got shape " +
                              to_string(shape_of(array)));
    }
    if (shape && shape_of(array) != *shape) {
        throw py::value_error(who + ": expected shape " + to_string(*shape) + ", got " +
                              to_string(shape_of(array)));
    }
    if (!(array.flags() & py::array::c_style)) {
        throw py::value_error(who + ": expected a C-contiguous array, got strides");
    }
    if (reinterpret_cast<std::uintptr_t>(array.data()) % alignof(T) != 0) {
        throw py::value_error(who + ": expected aligned memory");
    }
}

template <typename T>
void expect_writable(const py::array& array, const char* name) {
    if (!array.writeable())
        throw py::value_error(std::string(name) + ": expected a writable array, got a read-only one");
}

inline void expect_threads(int threads) {
    if (threads < 1) throw py::value_error("threads: expected at least 1, got " + std::to_string(threads));
}

// (N,) columns.
template <typename T>
const T* read_column(const py::array& array, const char* name, const std::optional<Shape>& shape = {}) {
    expect<T>(array, name, 1, shape);
    return static_cast<const T*>(array.data());
}

// (H, W) planes.
template <typename T>
Plane<const T> read(const py::array& array, const char* name, const std::optional<Shape>& shape = {}) {
    expect<T>(array, name, 2, shape);
    return {static_cast<const T*>(array.data()), array.shape(0), array.shape(1)};
}

template <typename T>
Plane<T> write(py::array& array, const char* name, const std::optional<Shape>& shape = {}) {
    expect<T>(array, name, 2, shape);
    expect_writable<T>(array, name);
    return {static_cast<T*>(array.mutable_data()), array.shape(0), array.shape(1)};
}

// (N, 2) points.
inline Plane<const double> read_points(const py::array& array, const char* name) {
    const auto points = read<double>(array, name);
    if (points.cols != 2) {
        throw py::value_error(std::string(name) + ": expected shape (N, 2), got " +
                              to_string(shape_of(array)));
    }
    return points;
}

// (H, W, C) images.
template <typename T>
Image<const T> read_image(const py::array& array, const char* name, const std::optional<Shape>& shape = {}) {
    expect<T>(array, name, 3, shape);
    return {static_cast<const T*>(array.data()), array.shape(0), array.shape(1), array.shape(2)};
}

// Parts of (H, W, C) images: whole rows, which may lie apart.
template <typename T>
Cutout<const T> read_cutout(const py::array& array, const char* name) {
    const bool rows = array.ndim() == 3 && array.size() > 0 && array.strides(0) % py::ssize_t{sizeof(T)} == 0;
    expect<T>(rows ? py::array(array[py::int_(0)]) : array, name, rows ? 2 : 3, {});
    return {static_cast<const T*>(array.data()), array.shape(0), array.shape(1), array.shape(2),
            array.strides(0) / py::ssize_t{sizeof(T)}};
}

template <typename T>
Image<T> write_image(py::array& array, const char* name, const std::optional<Shape>& shape = {}) {
    expect<T>(array, name, 3, shape);
    expect_writable<T>(array, name);
    return {static_cast<T*>(array.mutable_data()), array.shape(0), array.shape(1), array.shape(2)};
}

// Hands a vector's memory to NumPy without a copy.
template <typename T>
py::array_t<T> to_numpy(std::vector<T>&& values, Shape shape) {
    auto* owner = new std::vector<T>(std::move(values));
    const py::capsule release(owner, [](void* p) { delete static_cast<std::vector<T>*>(p); });
    return py::array_t<T>(std::move(shape), owner->data(), release);
}

}  // namespace nucfast::bindings
