#include "arrays.hpp"

namespace nucfast::bindings {

void bind_components(py::module_&) {}

}  // namespace nucfast::bindings
