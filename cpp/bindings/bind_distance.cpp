#include "arrays.hpp"

namespace nucfast::bindings {

void bind_distance(py::module_&) {}

}  // namespace nucfast::bindings
