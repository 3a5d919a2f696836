#include "emulator.h"

#include <signal.h>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <utility>
#include <vector>

namespace icckd::emulator {
namespace {

constexpr size_t page = 4096, guard_bytes = 1 << 20, stack_bytes = 256 << 10;
constexpr unsigned char shared_poison = 0xff, guard_poison = 0xa5;

size_t round_up(size_t n, size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Whole pages of memory, between guard pages that nobody may touch.
unsigned char* map_guarded(size_t bytes) {
  const size_t inside = round_up(bytes, page);
  void* p = mmap(nullptr, inside + 2 * guard_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  unsigned char* begin = static_cast<unsigned char*>(p) + guard_bytes;
  mprotect(begin, inside, PROT_READ | PROT_WRITE);
  return begin;
}

void unmap_guarded(unsigned char* begin, size_t bytes) {
  munmap(begin - guard_bytes, round_up(bytes, page) + 2 * guard_bytes);
}

// ---- fibers -----------------------------------------------------------------------------------------------------------

#if defined(__x86_64__)

// Pushes what a call preserves, leaves its stack pointer at *from, and continues where `to` was left.
extern "C" void icckd_switch_stacks(void** from, void* to) __attribute__((visibility("hidden")));
asm(R"(
.pushsection .text
.hidden icckd_switch_stacks
.globl icckd_switch_stacks
.type icckd_switch_stacks, @function
icckd_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size icckd_switch_stacks, . - icckd_switch_stacks
.popsection
)");

struct Context {
  void* stack_pointer = nullptr;

  void prepare(unsigned char* stack, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + stack_bytes);
    *--top = nullptr;  // the address that `entry`, which never returns, would return to
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    stack_pointer = top;
  }
  void switch_to(Context& other) { icckd_switch_stacks(&stack_pointer, other.stack_pointer); }
};

#else

struct Context {
  ucontext_t context;

  void prepare(unsigned char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = stack_bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  void switch_to(Context& other) { swapcontext(&context, &other.context); }
};

#endif

unsigned char* fiber_stack(int thread) {
  static std::vector<unsigned char*> stacks;
  while (static_cast<int>(stacks.size()) <= thread) stacks.push_back(map_guarded(stack_bytes));
  return stacks[thread];
}

// ---- one block --------------------------------------------------------------------------------------------------------

enum class State { ready, in_warp, at_block_barrier, at_group_barrier, ended };

using Groups = std::deque<std::vector<std::function<void()>>>;  // the last one is not committed yet

struct Thread {
  Context context;
  State state = State::ready;
  const char* what = "";  // it waits in
  Place place;
  void* argument = nullptr;
  int group = 0;
  Groups groups[2] = {Groups(1), Groups(1)};
  bool wgmma_fenced = false;
};

struct GroupBarrier {
  int arrived = 0, count = 0;
};

struct Product {
  uint64_t a, b;  // descriptors
  unsigned line;
};

struct Warp {
  int arrived = 0, first_arrived = 0;
  size_t products = 0;  // of its warpgroup that it has taken part in
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  int at_barrier = 0, ended = 0;
  std::map<int, GroupBarrier> groups;
  std::vector<std::vector<Product>> products;  // of each warpgroup
};

struct Run {
  Grid grid;
  Timing timing;
  const std::function<void()>* kernel;
  Position position;
  unsigned char* shared;
  Block block;
  Context scheduler;
  std::exception_ptr error;
};

Run* run = nullptr;
bool on_fiber = false;
std::map<unsigned char*, size_t> buffers;  // their pages, and the bytes at the end of these

Thread& self() {
  return run->block.threads[run->position.thread];
}

void yield() {
  on_fiber = false;
  self().context.switch_to(run->scheduler);
  on_fiber = true;
}

std::string location(const char* what, const Place& place) {
  const std::string path = place.file_name();
  return std::string(what) + " at " + path.substr(path.rfind('/') + 1) + ":" + std::to_string(place.line());
}

bool same(const Place& a, const Place& b) {
  return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

std::string in_block() {
  const Position& at = run->position;
  return "block " + std::to_string(at.block) + (run->grid.blocks_y > 1 ? ", " + std::to_string(at.block_y) : "");
}

// "threads 0-15 wait in shuffle at x.h:3; threads 16-31 have ended"
std::string who_waits() {
  std::string text;
  const auto describe = [](const Thread& t) {
    return t.state == State::ended ? std::string("have ended") : "wait in " + location(t.what, t.place);
  };
  const auto& threads = run->block.threads;
  for (size_t begin = 0, end; begin < threads.size(); begin = end) {
    for (end = begin; end < threads.size() && describe(threads[end]) == describe(threads[begin]);) ++end;
    text += (text.empty() ? "threads " : "; threads ") + std::to_string(begin) + "-" + std::to_string(end - 1) + " " + describe(threads[begin]);
  }
  return text;
}

void release_block_barrier_if_full() {
  Block& block = run->block;
  if (block.at_barrier == 0 || block.at_barrier + block.ended < static_cast<int>(block.threads.size())) return;
  const Thread* first = nullptr;
  for (Thread& t : block.threads) {
    if (t.state != State::at_block_barrier) continue;
    if (first && !same(first->place, t.place)) throw Error("divergent block_barrier in " + in_block() + ": " + who_waits());
    first = &t;
  }
  for (Thread& t : block.threads)
    if (t.state == State::at_block_barrier) t.state = State::ready;
  block.at_barrier = 0;
}

void fiber() {
  on_fiber = true;
  try {
    (*run->kernel)();
    Block& block = run->block;
    self().state = State::ended;
    ++block.ended;
    release_block_barrier_if_full();
  } catch (...) {
    run->error = std::current_exception();
  }
  yield();
  __builtin_unreachable();
}

void check_end_of_block() {
  const Block& block = run->block;
  for (size_t w = 0; w < block.warps.size(); ++w)
    if (block.warps[w].products != block.products[w / 4].size())
      throw Error("warp " + std::to_string(w) + " in " + in_block() + " took part in fewer wgmma than its warpgroup");
}

void run_block() {
  const int count = run->grid.threads;
  Block& block = run->block = {};
  block.threads.resize(count);
  block.warps.resize(count / 32);
  block.products.resize((count + 127) / 128);
  for (int i = 0; i < count; ++i) block.threads[i].context.prepare(fiber_stack(i), fiber);
  while (block.ended < count) {
    bool progress = false;
    for (int i = 0; i < count; ++i) {
      run->position.thread = run->timing == Timing::late ? i : count - 1 - i;
      Thread& t = self();
      if (t.state != State::ready) continue;
      progress = true;
      run->scheduler.switch_to(t.context);
      if (run->error) std::rethrow_exception(run->error);
    }
    if (!progress) throw Error("deadlock in " + in_block() + ": " + who_waits());
  }
  check_end_of_block();
}

void check_around_buffers() {
  for (const auto& [pages, bytes] : buffers) {
    const size_t inside = round_up(bytes, page), before = inside - round_up(bytes, 16);
    for (size_t i = 0; i < inside; ++i)
      if ((i < before || i >= before + bytes) && pages[i] != guard_poison) throw Error("write beside a buffer");
  }
}

// An address that no memory is at, in a kernel: an exception in its fiber.
void on_fault(int signal, siginfo_t* info, void*) {
  if (!on_fiber) {
    ::signal(signal, SIG_DFL);
    return;
  }
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  throw Error("access out of bounds in " + in_block() + ", thread " + std::to_string(run->position.thread) + ": address " +
              std::to_string(address));
}

class FaultHandler {
 public:
  FaultHandler() {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &action, &segv_);
    sigaction(SIGBUS, &action, &bus_);
  }
  ~FaultHandler() {
    sigaction(SIGSEGV, &segv_, nullptr);
    sigaction(SIGBUS, &bus_, nullptr);
  }

 private:
  struct sigaction segv_, bus_;
};

class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes) : bytes_(bytes), begin_(map_guarded(bytes)) {}
  ~SharedMemory() { unmap_guarded(begin_, bytes_); }
  unsigned char* begin() { return begin_; }
  // The rest of the last page belongs to nobody.
  void poison() { std::memset(begin_, shared_poison, round_up(bytes_, page)); }
  void check() {
    for (size_t i = bytes_; i < round_up(bytes_, page); ++i)
      if (begin_[i] != shared_poison) throw Error("write behind shared memory in " + in_block());
  }

 private:
  size_t bytes_;
  unsigned char* begin_;
};

}  // namespace

void launch(const Grid& grid, Timing timing, const std::function<void()>& kernel) {
  if (grid.threads < 32 || grid.threads > 1024 || grid.threads % 32 != 0) throw Error("threads should be whole warps, at most 1024");
  SharedMemory shared(grid.shared_bytes);
  Run this_run{grid, timing, &kernel, {0, 0, 0, grid.threads, grid.blocks}, shared.begin(), {}, {}, nullptr};
  const FaultHandler handler;
  struct Current {
    explicit Current(Run* r) { run = r; }
    ~Current() {
      run = nullptr;
      on_fiber = false;
    }
  } current(&this_run);
  const int count = grid.blocks * grid.blocks_y;
  for (int i = 0; i < count; ++i) {
    const int index = timing == Timing::late ? i : count - 1 - i;
    this_run.position.block = index % grid.blocks;
    this_run.position.block_y = index / grid.blocks;
    shared.poison();
    run_block();
    shared.check();
  }
  check_around_buffers();
}

const Position& position() {
  return run->position;
}

Timing timing() {
  return run->timing;
}

unsigned char* shared_memory() {
  return run->shared;
}

void fail(const std::string& message, const Place& place) {
  throw Error(location(message.c_str(), place) + ", " + in_block() + ", thread " + std::to_string(run->position.thread));
}

static void check_alignment(const void* p, size_t alignment, const Place& place) {
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0) fail("address is not a multiple of " + std::to_string(alignment), place);
}

static bool is_shared(const void* p) {
  const auto* byte = static_cast<const unsigned char*>(p);
  return byte >= run->shared && byte < run->shared + round_up(run->grid.shared_bytes, page);
}

void check_shared(const void* p, size_t bytes, size_t alignment, const Place& place) {
  const auto* byte = static_cast<const unsigned char*>(p);
  if (byte < run->shared || byte + bytes > run->shared + run->grid.shared_bytes) fail("address outside of shared memory", place);
  check_alignment(p, alignment, place);
}

void check_global(const void* p, size_t alignment, const Place& place) {
  if (is_shared(p)) fail("shared memory where global memory is meant", place);
  check_alignment(p, alignment, place);
}

void check_either(const void* p, size_t bytes, size_t alignment, const Place& place) {
  is_shared(p) ? check_shared(p, bytes, alignment, place) : check_alignment(p, alignment, place);
}

void warp_collective(const char* what, const Place& place, void* argument, Together together) {
  const int warp = run->position.thread / 32;
  Warp& mine = run->block.warps[warp];
  Thread& me = self();
  Thread* lanes = &run->block.threads[32 * warp];
  me.what = what;
  me.place = place;
  me.argument = argument;
  me.state = State::in_warp;
  if (mine.arrived == 0) mine.first_arrived = run->position.thread % 32;
  const Thread& first = lanes[mine.first_arrived];
  if (std::strcmp(first.what, what) != 0 || !same(first.place, place))
    throw Error("lanes of warp " + std::to_string(warp) + " in " + in_block() + " diverge: " + who_waits());
  if (++mine.arrived < 32) return yield();
  mine.arrived = 0;
  void* arguments[32];
  for (int i = 0; i < 32; ++i) {
    arguments[i] = lanes[i].argument;
    lanes[i].state = State::ready;
  }
  together(arguments);
}

void block_barrier(const Place& place) {
  Thread& me = self();
  me.what = "block_barrier";
  me.place = place;
  me.state = State::at_block_barrier;
  ++run->block.at_barrier;
  release_block_barrier_if_full();
  if (me.state != State::ready) yield();
}

void group_barrier(int id, int count, const Place& place) {
  if (id < 1 || id > 15 || count % 32 != 0) fail("group_barrier of a wrong id or count", place);
  Thread& me = self();
  GroupBarrier& group = run->block.groups[id];
  if (group.arrived > 0 && group.count != count) fail("group_barrier of different counts", place);
  group.count = count;
  me.what = "group_barrier";
  me.place = place;
  me.group = id;
  me.state = State::at_group_barrier;
  if (++group.arrived < count) return yield();
  group.arrived = 0;
  for (Thread& t : run->block.threads)
    if (t.state == State::at_group_barrier && t.group == id) t.state = State::ready;
}

static Groups& groups_of(Queue queue, int thread) {
  return run->block.threads[thread].groups[static_cast<int>(queue)];
}

void enqueue(Queue queue, int thread, std::function<void()> work) {
  if (run->timing == Timing::early) return work();
  groups_of(queue, thread).back().push_back(std::move(work));
}

void commit(Queue queue, int thread) {
  groups_of(queue, thread).emplace_back();
}

void wait(Queue queue, int thread, int newest) {
  Groups& groups = groups_of(queue, thread);
  for (; static_cast<int>(groups.size()) > newest + 1; groups.pop_front())
    for (const auto& work : groups.front()) work();
}

void check_warpgroup(uint64_t a, uint64_t b, const Place& place) {
  const int warp = run->position.thread / 32;
  auto& products = run->block.products[warp / 4];
  const size_t index = run->block.warps[warp].products++;
  if (run->grid.threads < 128 * (warp / 4 + 1)) fail("wgmma outside of a whole warpgroup", place);
  if (index == products.size()) products.push_back({a, b, place.line()});
  if (products[index].a != a || products[index].b != b || products[index].line != place.line())
    fail("the warps of a warpgroup call different wgmma", place);
}

bool& wgmma_fenced() {
  return self().wgmma_fenced;
}

// ---- buffers ----------------------------------------------------------------------------------------------------------

// Small buffers end at a page that nobody may touch, or up to 15 bytes before it so as to begin at a multiple of 16.
static constexpr size_t largest_copy = 256 << 20;

Buffer::Buffer(void* memory, size_t bytes) : memory_(memory), bytes_(bytes) {
  if (bytes > largest_copy) {
    begin_ = static_cast<unsigned char*>(memory);
    return;
  }
  const size_t inside = round_up(bytes, page);
  pages_ = map_guarded(bytes);
  begin_ = pages_ + inside - round_up(bytes, 16);
  std::memset(pages_, guard_poison, inside);
  if (bytes) std::memcpy(begin_, memory, bytes);
  mprotect(pages_, inside, PROT_READ);
  buffers[pages_] = bytes;
}

Buffer::Buffer(Buffer&& other) noexcept {
  *this = std::move(other);
}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(bytes_, other.bytes_);
  std::swap(begin_, other.begin_);
  std::swap(pages_, other.pages_);
  std::swap(writable_, other.writable_);
  return *this;
}

Buffer::~Buffer() {
  if (!pages_) return;
  if (writable_ && bytes_) std::memcpy(memory_, begin_, bytes_);
  buffers.erase(pages_);
  unmap_guarded(pages_, bytes_);
}

void Buffer::make_writable() {
  if (pages_) mprotect(pages_, round_up(bytes_, page), PROT_READ | PROT_WRITE);
  writable_ = true;
}

}  // namespace icckd::emulator
