// Splits a range over threads. Kernels that take `threads` go through here.
//
// The pieces depend on `count` and `threads` alone, so a caller can make its result independent of both by
// joining pieces in order. Who runs a piece depends on who is free: the caller, or workers of one pool that
// all callers share, grows on demand and lives as long as the process. The caller works on its own pieces and
// waits only for those that others have begun, so calls may be nested and may come from several threads.
// A fork leaves the workers behind; the child grows its own.
#pragma once

#include <cstddef>
#include <functional>

namespace nucfast {

// Calls `body(begin, end, piece)` for consecutive pieces that cover [0, count), at most `threads` of them. At
// most `threads` threads run at once, and no more than there are CPUs in the caller's affinity mask, which
// the workers take over. With one piece the caller does the work and no thread is started. An exception of a
// piece is rethrown when all pieces have ended; the first piece's, if several throw.
void parallel_for(std::ptrdiff_t count, int threads,
                  const std::function<void(std::ptrdiff_t begin, std::ptrdiff_t end, int piece)>& body);

}  // namespace nucfast
