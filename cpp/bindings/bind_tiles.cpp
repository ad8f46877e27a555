#include "arrays.hpp"
#include "nucfast/tiles.hpp"

namespace nucfast::bindings {

using namespace pybind11::literals;

namespace {

template <typename T>
void expect_tiles(const py::array& tiles, const char* name) {
    expect<T>(tiles, name, 4, {});
    if (tiles.shape(1) != tiles.shape(2)) {
        throw py::value_error(std::string(name) + ": expected square tiles, got shape " +
                              to_string(shape_of(tiles)));
    }
}

template <typename T>
Tiles<const T> read_tiles(const py::array& tiles) {
    expect_tiles<T>(tiles, "tiles");
    return {static_cast<const T*>(tiles.data()), tiles.shape(0), tiles.shape(1), tiles.shape(3)};
}

template <typename T>
Image<T> write_channels(py::array& out, py::ssize_t channels) {
    const auto image = write_image<T>(out, "out");
    if (image.channels != channels) {
        throw py::value_error("out: expected " + std::to_string(channels) + " channels, got shape " +
                              to_string(shape_of(out)));
    }
    return image;
}

const std::int32_t* read_origins(const py::array& origins, py::ssize_t count) {
    return read<std::int32_t>(origins, "origins", Shape{count, 2}).data;
}

// Calls `body` with a value of the dtype of `tiles`.
template <typename Body>
void with_dtype(const py::array& tiles, Body&& body) {
    if (tiles.dtype().equal(py::dtype::of<std::uint8_t>())) return body(std::uint8_t{});
    if (tiles.dtype().equal(py::dtype::of<float>())) return body(float{});
    throw py::type_error("tiles: expected uint8 or float32, got " +
                         py::str(tiles.dtype()).cast<std::string>());
}

}  // namespace

void bind_tiles(py::module_& m) {
    m.def(
        "tile",
        [](const py::array& image, const py::array& origins, std::uint8_t fill, py::array& out, int threads) {
            expect_threads(threads);
            const auto from = read_image<std::uint8_t>(image, "image");
            expect_tiles<std::uint8_t>(out, "out");
            expect_writable<std::uint8_t>(out, "out");
            if (out.shape(3) != from.channels) {
                throw py::value_error("out: expected " + std::to_string(from.channels) +
                                      " channels, got shape " + to_string(shape_of(out)));
            }
            const auto* corners = read_origins(origins, out.shape(0));
            const Tiles<std::uint8_t> to{static_cast<std::uint8_t*>(out.mutable_data()), out.shape(0),
                                         out.shape(1), out.shape(3)};
            const py::gil_scoped_release unlock;  // no Python object is touched below
            tile(from, corners, fill, to, threads);
        },
        "image"_a.noconvert(), "origins"_a.noconvert(), "fill"_a, "out"_a.noconvert(), "threads"_a);
    m.def(
        "stitch",
        [](const py::array& tiles, const py::array& origins, py::ssize_t margin_px, py::array& out) {
            with_dtype(tiles, [&](auto value) {
                using T = decltype(value);
                const auto from = read_tiles<T>(tiles);
                const auto* corners = read_origins(origins, from.count);
                const auto to = write_channels<T>(out, from.channels);
                const py::gil_scoped_release unlock;  // no Python object is touched below
                stitch(from, corners, margin_px, to);
            });
        },
        "tiles"_a.noconvert(), "origins"_a.noconvert(), "margin_px"_a, "out"_a.noconvert());
    m.def(
        "blend",
        [](const py::array& tiles, const py::array& origins, const py::array& window, py::array& out,
           int threads) {
            expect_threads(threads);
            with_dtype(tiles, [&](auto value) {
                using T = decltype(value);
                const auto from = read_tiles<T>(tiles);
                const auto* corners = read_origins(origins, from.count);
                const auto weights = read<float>(window, "window", Shape{from.size_px, from.size_px});
                const auto to = write_channels<float>(out, from.channels);
                const py::gil_scoped_release unlock;  // no Python object is touched below
                blend(from, corners, weights, to, threads);
            });
        },
        "tiles"_a.noconvert(), "origins"_a.noconvert(), "window"_a.noconvert(), "out"_a.noconvert(),
        "threads"_a);
    m.def(
        "pixel_shuffle",
        [](const py::array& planes, py::array& out) {
            expect<std::uint8_t>(planes, "planes", 3, {});
            py::ssize_t block = 1;
            while (block * block < planes.shape(0)) ++block;
            if (block * block != planes.shape(0)) {
                throw py::value_error("planes: expected a square number of planes, got shape " +
                                      to_string(shape_of(planes)));
            }
            const auto to =
                write<std::uint8_t>(out, "out", Shape{planes.shape(1) * block, planes.shape(2) * block});
            const auto* from = static_cast<const std::uint8_t*>(planes.data());
            const py::gil_scoped_release unlock;  // no Python object is touched below
            pixel_shuffle(from, block, to);
        },
        "planes"_a.noconvert(), "out"_a.noconvert());
}

}  // namespace nucfast::bindings
