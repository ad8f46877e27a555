#include "arrays.hpp"

namespace nucfast::bindings {

void bind_contours(py::module_&) {}

}  // namespace nucfast::bindings
