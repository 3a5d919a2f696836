// PyTorch's thread pool by std::thread: preloaded, it lets ThreadSanitizer, which knows nothing of OpenMP's barriers, watch the CPU
// kernels (csrc/README.md).

#include <cstdint>
#include <thread>
#include <vector>

extern "C" int32_t torch_get_num_threads(uint32_t* count) {
  *count = 4;
  return 0;
}

extern "C" int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t /*grain_size*/, void (*run)(int64_t, int64_t, void*),
                                      void* context) {
  std::vector<std::thread> threads;
  for (int64_t i = begin; i < end; ++i) threads.emplace_back(run, i, i + 1, context);
  for (std::thread& thread : threads) thread.join();
  return 0;
}
