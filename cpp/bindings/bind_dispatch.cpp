#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>

#include "nucfast/dispatch.hpp"

namespace nucfast::bindings {

namespace py = pybind11;
using namespace py::literals;

void bind_dispatch(py::module_& m) {
    m.def(
        "set_isa",
        [](const std::optional<std::string>& limit) {
            const std::array<const char*, 3> names{"baseline", "avx2", "avx512"};
            const auto in_use = [&](std::optional<Isa> set) {
                return names[static_cast<std::size_t>(set_isa(set))];
            };
            if (!limit) return in_use({});
            for (std::size_t i = 0; i < names.size(); ++i) {
                if (*limit == names[i]) return in_use(static_cast<Isa>(i));
            }
            throw py::value_error("limit: expected baseline, avx2 or avx512, got " + *limit);
        },
        "limit"_a,
        "Limits the instruction sets of all kernels, for tests; None: to NUCFAST_ISA. Returns the set now in "
        "use.");
}

}  // namespace nucfast::bindings
