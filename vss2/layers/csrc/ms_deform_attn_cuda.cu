// Multi-scale deformable attention on CUDA: forward, backward, and a backward without atomics.
//
// A group of G lanes serves one head of one query; each lane holds V channels, 16 bytes where the
// channels allow it, so a warp serves 32 / G heads with wide loads. What does not depend on the
// channel is worked out once for a point, by one lane, and handed to the others by shuffles.
// Storage is double, float, half or bfloat16; coordinates and sums are double for double, else
// float. No header of PyTorch is needed; the functions at the end take plain pointers.

#include <cstdint>

#ifndef VSS2_EMULATED  // the tests run these kernels on the CPU, lane by lane
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define LAUNCH(kernel, blocks, stream, ...) \
  kernel<<<(unsigned)(blocks), kThreads, 0, (cudaStream_t)(stream)>>>(__VA_ARGS__)
#endif

namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 2;  // on a multiprocessor; without this bound registers spill
constexpr int kMaxLevels = 16;
constexpr unsigned kAllLanes = 0xffffffffu;

template <typename T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

struct Problem {
  int64_t tokens, rows;  // rows = batch * queries * heads
  int64_t queries_heads;
  int heads, channels, levels, points, samples;  // samples = levels * points
  int height[kMaxLevels], width[kMaxLevels], start[kMaxLevels];
};

template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T part[V];
};

template <int V, typename A, typename T>
__device__ __forceinline__ void load(const T* from, A (&to)[V]) {
  const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(from);
#pragma unroll
  for (int k = 0; k < V; ++k) to[k] = static_cast<A>(pack.part[k]);
}

template <int V, typename A, typename T>
__device__ __forceinline__ void store(const A (&from)[V], T* to) {
  Pack<T, V> pack;
#pragma unroll
  for (int k = 0; k < V; ++k) pack.part[k] = static_cast<T>(from[k]);
  *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

// One sampling point: its upper left pixel, which of the four are in the map, and their weights.
template <typename A>
struct Point {
  int token;      // of the upper left pixel; meaningless unless its bit in `flags` is set
  int flags;      // width of the level * 16 + a bit for each of the four pixels in the map
  A weight[4];    // attention * bilinear weight; pixels in the order (0,0) (0,1) (1,0) (1,1)
  A fx, fy, attention, width, height;

  __device__ bool has(int corner) const { return flags >> corner & 1; }
  __device__ int64_t pixel(int corner) const {
    return int64_t(token) + (corner & 1) + (corner & 2 ? flags >> 4 : 0);
  }
};

template <typename A>
__device__ __forceinline__ Point<A> find_point(
    const Problem& p, int sample, const A* location, A attention) {
  const int level = sample / p.points;
  const int height = p.height[level], width = p.width[level];
  const A x = location[0] * A(width) - A(0.5), y = location[1] * A(height) - A(0.5);
  Point<A> point;
  point.token = point.flags = 0;
  point.fx = point.fy = 0;
  point.attention = attention;
  point.width = A(width);
  point.height = A(height);
  if (x > A(-1) && y > A(-1) && x < A(width) && y < A(height)) {  // false for NaN
    const A floor_x = floor(x), floor_y = floor(y);
    const int x0 = int(floor_x), y0 = int(floor_y);
    point.fx = x - floor_x;
    point.fy = y - floor_y;
    point.token = p.start[level] + y0 * width + x0;
    const int left = x0 >= 0, right = x0 + 1 < width, top = y0 >= 0, bottom = y0 + 1 < height;
    point.flags = width << 4 | (top & left) | (top & right) << 1 | (bottom & left) << 2 |
                  (bottom & right) << 3;
  }
  point.weight[0] = attention * (1 - point.fy) * (1 - point.fx);
  point.weight[1] = attention * (1 - point.fy) * point.fx;
  point.weight[2] = attention * point.fy * (1 - point.fx);
  point.weight[3] = attention * point.fy * point.fx;
  return point;
}

// The point that lane `source` of the group found: what reading its pixels takes.
template <int G, typename A>
__device__ __forceinline__ Point<A> broadcast(const Point<A>& own, int source) {
  Point<A> point;
  point.token = __shfl_sync(kAllLanes, own.token, source, G);
  point.flags = __shfl_sync(kAllLanes, own.flags, source, G);
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    point.weight[c] = __shfl_sync(kAllLanes, own.weight[c], source, G);
  }
  return point;
}

template <int G, typename A>
__device__ __forceinline__ A group_sum(A x) {
#pragma unroll
  for (int step = G / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step, G);
  return x;
}

// Lanes past the last row work on it too, without reading pixels or writing: shuffles need them.
template <typename T, int V, int G>
__global__ void __launch_bounds__(kThreads, kBlocks) forward_kernel(
    const Problem p, const T* __restrict__ value,
    const typename Compute<T>::type* __restrict__ locations,
    const typename Compute<T>::type* __restrict__ attention, T* __restrict__ out) {
  using A = typename Compute<T>::type;
  const int lane = threadIdx.x % G;
  const int64_t group = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / G;
  const int pieces = (p.channels + V * G - 1) / (V * G);
  const int channel = int(group % pieces) * V * G + lane * V;
  const bool active = group / pieces < p.rows && channel < p.channels;
  const int64_t row = group / pieces < p.rows ? group / pieces : p.rows - 1;
  const int64_t stride = int64_t(p.heads) * p.channels;
  const T* map = value + row / p.queries_heads * p.tokens * stride +
                 row % p.heads * p.channels + channel;
  A sum[V] = {};
  for (int first = 0; first < p.samples; first += G) {
    const int sample = first + lane < p.samples ? first + lane : p.samples - 1;
    const int64_t at = row * p.samples + sample;
    const Point<A> own = find_point(p, sample, locations + 2 * at, attention[at]);
    const int count = p.samples - first < G ? p.samples - first : G;
    for (int source = 0; source < count; ++source) {
      const Point<A> point = broadcast<G>(own, source);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (active && point.has(c)) {
          A pixel[V];
          load<V>(map + point.pixel(c) * stride, pixel);
#pragma unroll
          for (int k = 0; k < V; ++k) sum[k] += point.weight[c] * pixel[k];
        }
      }
    }
  }
  if (active) store<V>(sum, out + row * p.channels + channel);
}

template <int V, typename A>
__device__ __forceinline__ void atomic_add(A* to, A scale, const A (&row)[V]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr int kStep = V % 4 == 0 && sizeof(A) == 4 ? 4 : 1;
#else
  constexpr int kStep = 1;
#endif
#pragma unroll
  for (int k = 0; k < V; k += kStep) {
    if constexpr (kStep == 4) {
      asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to + k),
                   "f"(scale * row[k]), "f"(scale * row[k + 1]), "f"(scale * row[k + 2]),
                   "f"(scale * row[k + 3])
                   : "memory");
    } else {
      atomicAdd(to + k, scale * row[k]);
    }
  }
}

// Gradients of locations and attention; and of value, by atomics, if grad_value is not null.
template <typename T, int V, int G>
__global__ void __launch_bounds__(kThreads, kBlocks) backward_kernel(
    const Problem p, const T* __restrict__ grad_out, const T* __restrict__ value,
    const typename Compute<T>::type* __restrict__ locations,
    const typename Compute<T>::type* __restrict__ attention,
    typename Compute<T>::type* __restrict__ grad_value,
    typename Compute<T>::type* __restrict__ grad_locations,
    typename Compute<T>::type* __restrict__ grad_attention) {
  using A = typename Compute<T>::type;
  const int lane = threadIdx.x % G;
  const int64_t group = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / G;
  const bool active = group < p.rows;
  const int64_t row = active ? group : p.rows - 1;
  const int64_t stride = int64_t(p.heads) * p.channels;
  const int64_t origin =
      row / p.queries_heads * p.tokens * stride + row % p.heads * p.channels;
  A grad[V] = {};  // the lane's first piece; a head with more reads the others point by point
  if (lane * V < p.channels) load<V>(grad_out + row * p.channels + lane * V, grad);
  for (int first = 0; first < p.samples; first += G) {
    const int sample = first + lane < p.samples ? first + lane : p.samples - 1;
    const int64_t at = row * p.samples + sample;
    const Point<A> own = find_point(p, sample, locations + 2 * at, attention[at]);
    A own_dots[4] = {};
    const int count = p.samples - first < G ? p.samples - first : G;
    for (int source = 0; source < count; ++source) {
      const Point<A> point = broadcast<G>(own, source);
      A dots[4] = {};
      for (int channel = lane * V; channel < p.channels; channel += V * G) {
        if (channel >= V * G) load<V>(grad_out + row * p.channels + channel, grad);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          if (active && point.has(c)) {
            const int64_t offset = origin + point.pixel(c) * stride + channel;
            A pixel[V];
            load<V>(value + offset, pixel);
#pragma unroll
            for (int k = 0; k < V; ++k) dots[c] += pixel[k] * grad[k];
            if (grad_value != nullptr) atomic_add<V>(grad_value + offset, point.weight[c], grad);
          }
        }
      }
      if (p.channels > V * G) load<V>(grad_out + row * p.channels + lane * V, grad);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const A dot = group_sum<G>(dots[c]);
        if (lane == source) own_dots[c] = dot;
      }
    }
    if (active && first + lane < p.samples) {
      const A top = (1 - own.fx) * own_dots[0] + own.fx * own_dots[1];
      const A bottom = (1 - own.fx) * own_dots[2] + own.fx * own_dots[3];
      const A left = (1 - own.fy) * own_dots[0] + own.fy * own_dots[2];
      const A right = (1 - own.fy) * own_dots[1] + own.fy * own_dots[3];
      grad_locations[2 * at] = own.attention * own.width * (right - left);
      grad_locations[2 * at + 1] = own.attention * own.height * (bottom - top);
      grad_attention[at] = (1 - own.fy) * top + own.fy * bottom;
    }
  }
}

// Without atomics: the pixel of every corner as a key to sort by. A corner outside its map gets a
// key past all pixels.
template <typename A>
__global__ void __launch_bounds__(kThreads, kBlocks) keys_kernel(
    const Problem p, const A* __restrict__ locations, int64_t* __restrict__ keys) {
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= p.rows * p.samples) return;
  const int64_t row = at / p.samples;
  const int64_t head = row / p.queries_heads * p.heads + row % p.heads;
  const int64_t outside = p.rows / p.queries_heads * p.heads * p.tokens;
  const Point<A> point = find_point(p, int(at % p.samples), locations + 2 * at, A(0));
  for (int c = 0; c < 4; ++c) {
    keys[4 * at + c] = point.has(c) ? head * p.tokens + point.pixel(c) : outside;
  }
}

// A group gathers what the corners in its pixel's list, order[begins[key]:begins[key + 1]], add to
// the gradient of that pixel, always in the same order.
template <typename T, int V, int G>
__global__ void __launch_bounds__(kThreads, kBlocks) gather_kernel(
    const Problem p, const T* __restrict__ grad_out,
    const typename Compute<T>::type* __restrict__ locations,
    const typename Compute<T>::type* __restrict__ attention, const int64_t* __restrict__ begins,
    const int64_t* __restrict__ order, typename Compute<T>::type* __restrict__ grad_value) {
  using A = typename Compute<T>::type;
  const int lane = threadIdx.x % G;
  const int64_t key = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / G;
  if (key >= p.rows / p.queries_heads * p.heads * p.tokens) return;
  const int64_t head = key / p.tokens % p.heads, batch = key / p.tokens / p.heads;
  const int64_t to = ((batch * p.tokens + key % p.tokens) * p.heads + head) * p.channels;
  for (int channel = lane * V; channel < p.channels; channel += V * G) {
    A sum[V] = {};
    for (int64_t i = begins[key]; i < begins[key + 1]; ++i) {
      const int64_t at = order[i] / 4, row = at / p.samples;
      const Point<A> point =
          find_point(p, int(at % p.samples), locations + 2 * at, attention[at]);
      const int corner = int(order[i] % 4);
      A weight = point.weight[0];  // not by index: the array would leave the registers
#pragma unroll
      for (int c = 1; c < 4; ++c) weight = c == corner ? point.weight[c] : weight;
      A grad[V];
      load<V>(grad_out + row * p.channels + channel, grad);
#pragma unroll
      for (int k = 0; k < V; ++k) sum[k] += weight * grad[k];
    }
    store<V>(sum, grad_value + to + channel);
  }
}

// sizes: batch, tokens, heads, channels, levels, queries, points. No size is 0.
Problem make_problem(const int64_t* sizes, const int64_t* shapes, const int64_t* starts) {
  Problem p = {};
  p.tokens = sizes[1];
  p.heads = int(sizes[2]);
  p.channels = int(sizes[3]);
  p.levels = int(sizes[4]);
  p.points = int(sizes[6]);
  p.samples = p.levels * p.points;
  p.queries_heads = sizes[5] * sizes[2];
  p.rows = sizes[0] * p.queries_heads;
  for (int level = 0; level < p.levels; ++level) {
    p.height[level] = int(shapes[2 * level]);
    p.width[level] = int(shapes[2 * level + 1]);
    p.start[level] = int(starts[level]);
  }
  return p;
}

int64_t blocks_for(int64_t threads) { return (threads + kThreads - 1) / kThreads; }

// Whether a lane can take 16 bytes: whole pieces, and rows that start at multiples of 16 bytes.
template <typename T>
bool wide(const Problem& p, const void* first, const void* second) {
  const auto address = reinterpret_cast<uintptr_t>(first) | reinterpret_cast<uintptr_t>(second);
  return p.channels % int(16 / sizeof(T)) == 0 && address % 16 == 0;
}

// `call(V, G)` with the lanes that fit: as few as hold a head, up to 8 with wide loads.
#define FOR_LANES(T, first, second, call)                \
  constexpr int kWide = 16 / sizeof(T);                  \
  if (!wide<T>(p, first, second)) {                      \
    call(1, 32);                                         \
  } else if (p.channels <= 4 * kWide) {                  \
    call(kWide, 4);                                      \
  } else {                                               \
    call(kWide, 8);                                      \
  }

template <typename T>
void run_forward(
    const Problem& p, const void* value, const void* locations, const void* attention, void* out,
    void* stream) {
  using A = typename Compute<T>::type;
#define FORWARD(V, G)                                                                       \
  LAUNCH(                                                                                   \
      (forward_kernel<T, V, G>),                                                            \
      blocks_for(p.rows * ((p.channels + (V) * (G) - 1) / ((V) * (G))) * (G)), stream, p,   \
      (const T*)value, (const A*)locations, (const A*)attention, (T*)out)
  FOR_LANES(T, value, out, FORWARD)
#undef FORWARD
}

template <typename T>
void run_backward(
    const Problem& p, const void* grad_out, const void* value, const void* locations,
    const void* attention, void* grad_value, void* grad_locations, void* grad_attention,
    void* stream) {
  using A = typename Compute<T>::type;
#define BACKWARD(V, G)                                                                      \
  LAUNCH(                                                                                   \
      (backward_kernel<T, V, G>), blocks_for(p.rows * (G)), stream, p, (const T*)grad_out,  \
      (const T*)value, (const A*)locations, (const A*)attention, (A*)grad_value,            \
      (A*)grad_locations, (A*)grad_attention)
  FOR_LANES(T, value, grad_out, BACKWARD)
#undef BACKWARD
}

template <typename T>
void run_gather(
    const Problem& p, const void* grad_out, const void* locations, const void* attention,
    const int64_t* begins, const int64_t* order, void* grad_value, void* stream) {
  using A = typename Compute<T>::type;
  const int64_t pixels = p.rows / p.queries_heads * p.heads * p.tokens;
#define GATHER(V, G)                                                                        \
  LAUNCH(                                                                                   \
      (gather_kernel<T, V, G>), blocks_for(pixels * (G)), stream, p, (const T*)grad_out,    \
      (const A*)locations, (const A*)attention, begins, order, (A*)grad_value)
  FOR_LANES(T, grad_out, grad_value, GATHER)
#undef GATHER
}

#ifdef VSS2_EMULATED
#define FOR_TYPE(dtype, call) \
  if (dtype == 1) call(__nv_bfloat16) else if (dtype == 3) call(double) else call(float)
#else
#define FOR_TYPE(dtype, call) \
  if (dtype == 0) call(__half) else if (dtype == 1) call(__nv_bfloat16) \
  else if (dtype == 2) call(float) else call(double)
#endif

}  // namespace

// Each returns the code of `cudaGetLastError`. dtype of value and of the output: 0 half,
// 1 bfloat16, 2 float, 3 double. Locations, attention and all gradients but that of the output are
// double for double, else float. grad_value is zero on entry, or null. All arrays are contiguous.
extern "C" {

// 0 if the driver and the current device can run these kernels.
int vss2_msda_cuda_usable() {
  cudaFuncAttributes attributes;
  cudaFuncGetAttributes(&attributes, (const void*)forward_kernel<float, 4, 8>);
  return (int)cudaGetLastError();
}

const char* vss2_msda_cuda_error(int code) { return cudaGetErrorString((cudaError_t)code); }

int vss2_msda_cuda_forward(
    int dtype, const int64_t* sizes, const int64_t* shapes, const int64_t* starts,
    const void* value, const void* locations, const void* attention, void* out, void* stream) {
  const Problem p = make_problem(sizes, shapes, starts);
#define CALL(T) { run_forward<T>(p, value, locations, attention, out, stream); }
  FOR_TYPE(dtype, CALL)
#undef CALL
  return (int)cudaGetLastError();
}

int vss2_msda_cuda_backward(
    int dtype, const int64_t* sizes, const int64_t* shapes, const int64_t* starts,
    const void* grad_out, const void* value, const void* locations, const void* attention,
    void* grad_value, void* grad_locations, void* grad_attention, void* stream) {
  const Problem p = make_problem(sizes, shapes, starts);
#define CALL(T)                                                                                \
  {                                                                                            \
    run_backward<T>(                                                                           \
        p, grad_out, value, locations, attention, grad_value, grad_locations, grad_attention,  \
        stream);                                                                               \
  }
  FOR_TYPE(dtype, CALL)
#undef CALL
  return (int)cudaGetLastError();
}

int vss2_msda_cuda_keys(
    int dtype, const int64_t* sizes, const int64_t* shapes, const int64_t* starts,
    const void* locations, int64_t* keys, void* stream) {
  const Problem p = make_problem(sizes, shapes, starts);
  const int64_t blocks = blocks_for(p.rows * p.samples);
  if (dtype == 3) {
    LAUNCH((keys_kernel<double>), blocks, stream, p, (const double*)locations, keys);
  } else {
    LAUNCH((keys_kernel<float>), blocks, stream, p, (const float*)locations, keys);
  }
  return (int)cudaGetLastError();
}

int vss2_msda_cuda_gather(
    int dtype, const int64_t* sizes, const int64_t* shapes, const int64_t* starts,
    const void* grad_out, const void* locations, const void* attention, const int64_t* begins,
    const int64_t* order, void* grad_value, void* stream) {
  const Problem p = make_problem(sizes, shapes, starts);
#define CALL(T) \
  { run_gather<T>(p, grad_out, locations, attention, begins, order, grad_value, stream); }
  FOR_TYPE(dtype, CALL)
#undef CALL
  return (int)cudaGetLastError();
}

}  // extern "C"
