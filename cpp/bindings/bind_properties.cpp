#include "arrays.hpp"

namespace nucfast::bindings {

void bind_properties(py::module_&) {}

}  // namespace nucfast::bindings
