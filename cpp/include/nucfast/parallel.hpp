// Splits a range over threads. Kernels that take `threads` go through here.
//
// The pieces depend on `count` and `threads` alone, so a caller can make its result independent of both by
// joining pieces in order. Exceptions of a piece are rethrown in the caller, the first piece's first.
#pragma once

#include <cstddef>
#include <functional>

namespace nucfast {

// Calls `body(begin, end, piece)` for consecutive pieces that cover [0, count), at most `threads` of them.
// With one piece the caller's thread does the work and no thread is started.
void parallel_for(std::ptrdiff_t count, int threads,
                  const std::function<void(std::ptrdiff_t begin, std::ptrdiff_t end, int piece)>& body);

}  // namespace nucfast
