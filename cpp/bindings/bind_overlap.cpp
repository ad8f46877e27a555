#include "arrays.hpp"

namespace nucfast::bindings {

void bind_overlap(py::module_&) {}

}  // namespace nucfast::bindings
