// Threads: each item is worked on once, and what a body throws arrives where the threads were started.
#include "runtime/parallel.h"

#include <new>

#include "fingerprint.h"
#include "random_sets.h"

int main() {
  for (const int threads : {0, 1, 4}) {
    std::vector<int> visits(1000);
    bcnet_fast::WorkQueue all(1000);
    bcnet_fast::run_in_threads(threads, [&](int) {
      for (std::int64_t item; all.next(item);) ++visits[static_cast<std::size_t>(item)];
    });
    require(visits == std::vector<int>(1000, 1), "items");
    record(visits);
    bcnet_fast::WorkQueue some(1000);
    bool caught = false;
    try {
      bcnet_fast::run_in_threads(threads, [&](int) {
        for (std::int64_t item; some.next(item);) {
          if (item % 100 == 3) throw std::bad_alloc();
        }
      });
    } catch (const std::bad_alloc&) {
      caught = true;
    }
    require(caught, "no exception");
  }
}
