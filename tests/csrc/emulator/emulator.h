// Runs a kernel on the CPU, one block after the other. A block's threads are fibers that run in turn, each up to the next call for
// which it must wait for others. What a GPU leaves to chance takes one of two extremes:
//
//   late    threads and blocks in ascending order; asynchronous work happens when it is waited for
//   early   in descending order; asynchronous work happens at once
//
// A kernel that is right under both waits for what it reads and does not overwrite what is still read, as far as its test data shows.
// Errors are exceptions: a deadlock (with who waits where), lanes or threads that wait at different places, addresses that are
// misaligned or outside of their memory. Global memory lies between pages that nobody may touch, so that plain reads and writes out
// of bounds are found too; shared memory begins as NaN.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>

namespace icckd::emulator {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Timing { late, early };

struct Grid {
  int blocks = 1, blocks_y = 1, threads = 32, shared_bytes = 0;
};

// Runs `kernel` in every thread. Throws Error.
void launch(const Grid& grid, Timing timing, const std::function<void()>& kernel);

// ---- for emulated_device.h --------------------------------------------------------------------------------------------

using Place = std::source_location;

struct Position {
  int thread, block, block_y, threads, blocks;
};

const Position& position();
Timing timing();
unsigned char* shared_memory();

// Throws Error with the place, the block and the thread.
[[noreturn]] void fail(const std::string& message, const Place& place);

// Shared memory from `p` on: inside of the block's, and aligned. Global memory: aligned and no shared memory.
void check_shared(const void* p, size_t bytes, size_t alignment, const Place& place);
void check_global(const void* p, size_t alignment, const Place& place);
void check_either(const void* p, size_t bytes, size_t alignment, const Place& place);

// Waits until every lane of the warp has called it at the same place; the last one runs `together` on the lanes' arguments.
using Together = void (*)(void* const (&arguments)[32]);
void warp_collective(const char* what, const Place& place, void* argument, Together together);

void block_barrier(const Place& place);
void group_barrier(int id, int count, const Place& place);

// Asynchronous work of a thread. late: it is done when its group is waited for; early: at once.
enum class Queue { copies, products };
void enqueue(Queue queue, int thread, std::function<void()> work);
void commit(Queue queue, int thread);
void wait(Queue queue, int thread, int newest);

// One warp's part in a product of its warpgroup, which must be the same for all four warps.
void check_warpgroup(uint64_t a, uint64_t b, const Place& place);
bool& wgmma_fenced();

// ---- for bind_*.cpp ---------------------------------------------------------------------------------------------------

// A copy of `bytes` bytes of a test's memory as global memory; what the kernel wrote goes back when it ends. Memory of more than
// 256 MB is used where it is.
class Buffer {
 public:
  Buffer() = default;
  Buffer(void* memory, size_t bytes);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  template <class T>
  const T* data() const {
    return reinterpret_cast<const T*>(begin_);
  }
  template <class T>
  T* mutable_data() {
    make_writable();
    return reinterpret_cast<T*>(begin_);
  }
  explicit operator bool() const { return memory_ != nullptr; }

 private:
  void make_writable();

  void* memory_ = nullptr;
  size_t bytes_ = 0;
  unsigned char *begin_ = nullptr, *pages_ = nullptr;
  bool writable_ = false;
};

}  // namespace icckd::emulator
