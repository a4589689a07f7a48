// Runs CUDA kernels on the CPU, for tests: each lane of a warp is a fiber, and a shuffle lets every
// other lane of the warp come to the same shuffle before it reads. Barriers and shared memory work
// in blocks of at most one warp.
#define VSS2_EMULATED
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
struct __nv_bfloat16 {  // the upper half of a float, rounded to even
  uint16_t bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float x) {
    uint32_t word;
    std::memcpy(&word, &x, 4);
    bits = uint16_t((word + 0x7fff + (word >> 16 & 1)) >> 16);
  }
  explicit operator float() const {
    const uint32_t word = uint32_t(bits) << 16;
    float x;
    std::memcpy(&x, &word, 4);
    return x;
  }
};
struct Index {
  unsigned x;
};
static Index threadIdx, blockIdx;

namespace emulated {
constexpr int kLanes = 32;
constexpr size_t kStack = 128 * 1024;
struct Warp {
  ucontext_t scheduler, lanes[kLanes];
  bool done[kLanes];
  char slots[2][kLanes][8];  // two, as a fast lane writes the next shuffle before others read
  int turn[kLanes];
  int current;
  std::unique_ptr<char[]> stacks{new char[kLanes * kStack]};
  std::function<void()> kernel;
};
static Warp warp;

static void enter() {
  warp.kernel();
  warp.done[warp.current] = true;
  swapcontext(&warp.lanes[warp.current], &warp.scheduler);
}

template <typename X>
X shuffle(X x, int source) {
  const int lane = warp.current, slot = warp.turn[lane]++ % 2;
  std::memcpy(warp.slots[slot][lane], &x, sizeof(X));
  swapcontext(&warp.lanes[lane], &warp.scheduler);
  std::memcpy(&x, warp.slots[slot][source], sizeof(X));
  return x;
}

inline void run_warp(unsigned block, unsigned first_thread, int count) {
  for (int lane = 0; lane < kLanes; ++lane) {
    warp.done[lane] = lane >= count;
    warp.turn[lane] = 0;
    getcontext(&warp.lanes[lane]);
    warp.lanes[lane].uc_stack.ss_sp = warp.stacks.get() + lane * kStack;
    warp.lanes[lane].uc_stack.ss_size = kStack;
    warp.lanes[lane].uc_link = nullptr;
    makecontext(&warp.lanes[lane], enter, 0);
  }
  for (bool running = true; running;) {
    running = false;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (warp.done[lane]) continue;
      running = true;
      warp.current = lane;
      blockIdx.x = block;
      threadIdx.x = first_thread + lane;
      swapcontext(&warp.scheduler, &warp.lanes[lane]);
    }
  }
}

template <typename Kernel>
void launch(int64_t blocks, int threads, Kernel kernel) {
  warp.kernel = kernel;
  for (int64_t block = 0; block < blocks; ++block) {
    for (int first = 0; first < threads; first += kLanes) {
      run_warp(unsigned(block), first, threads - first);
    }
  }
}
}  // namespace emulated

#define LAUNCH(kernel, blocks, stream, ...) \
  emulated::launch(blocks, kThreads, [&] { (kernel)(__VA_ARGS__); })

#define LAUNCH_BLOCKS(kernel, blocks, threads, bytes, stream, ...) \
  emulated::launch(blocks, threads, [&] { (kernel)(__VA_ARGS__); })
#define SHARED_FLOATS(name) static float name[3 * emulated::kLanes]

inline void __syncthreads() { emulated::shuffle(0, 0); }
template <typename X>
X __shfl_sync(unsigned, X x, int source, int width) {
  return emulated::shuffle(x, emulated::warp.current / width * width + source);
}
template <typename X>
X __shfl_xor_sync(unsigned, X x, int mask, int) {
  return emulated::shuffle(x, emulated::warp.current ^ mask);
}
template <typename X>
void atomicAdd(X* to, X x) {
  *to += x;
}
typedef int cudaError_t;
struct cudaFuncAttributes {};
inline int cudaFuncGetAttributes(cudaFuncAttributes*, const void*) { return 0; }
inline int cudaGetLastError() { return 0; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
