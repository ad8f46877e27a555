#include "arrays.hpp"

namespace nucfast::bindings {

void bind_tiles(py::module_&) {}

}  // namespace nucfast::bindings
