#include "arrays.hpp"

namespace nucfast::bindings {

void bind_watershed(py::module_&) {}

}  // namespace nucfast::bindings
