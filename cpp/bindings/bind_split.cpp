#include "arrays.hpp"

namespace nucfast::bindings {

void bind_split(py::module_&) {}

}  // namespace nucfast::bindings
