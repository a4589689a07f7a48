// The yardstick: multi-scale deformable attention in float32 with the structure of the published
// kernels. Forward: one thread for each number of the output. Backward: one block for each head
// of a query, one thread for each channel; sums over the channels are made by thread 0 alone.

#ifndef VSS2_EMULATED
#include <cuda_runtime.h>
#define LAUNCH_BLOCKS(kernel, blocks, threads, bytes, stream, ...) \
  kernel<<<blocks, threads, bytes, (cudaStream_t)(stream)>>>(__VA_ARGS__)
#define SHARED_FLOATS(name) extern __shared__ float name[]
#endif

namespace {

constexpr int kForwardThreads = 1024;

// `corners` gets the four pixels, 0 outside the map; `offset` their places, -1 outside.
__device__ void read_corners(
    const float* map, int height, int width, int stride, float x, float y, float (&corners)[4],
    int (&offset)[4]) {
  const int x0 = (int)floorf(x), y0 = (int)floorf(y);
  for (int c = 0; c < 4; ++c) {
    const int px = x0 + (c & 1), py = y0 + (c >> 1);
    const bool valid = px >= 0 && py >= 0 && px < width && py < height;
    offset[c] = valid ? (py * width + px) * stride : -1;
    corners[c] = valid ? map[offset[c]] : 0.f;
  }
}

__global__ void forward_kernel(
    int count, const float* value, const long long* shapes, const long long* starts,
    const float* locations, const float* attention, float* out, int tokens, int heads,
    int channels, int levels, int queries, int points) {
  const int index = blockIdx.x * kForwardThreads + threadIdx.x;
  if (index >= count) return;
  const int channel = index % channels, row = index / channels;
  const int head = row % heads, batch = row / heads / queries, stride = heads * channels;
  float sum = 0.f;
  int at = row * levels * points;
  for (int level = 0; level < levels; ++level) {
    const int height = (int)shapes[2 * level], width = (int)shapes[2 * level + 1];
    const float* map =
        value + (batch * tokens + (int)starts[level]) * stride + head * channels + channel;
    for (int point = 0; point < points; ++point, ++at) {
      const float x = locations[2 * at] * width - 0.5f, y = locations[2 * at + 1] * height - 0.5f;
      if (x > -1 && y > -1 && x < width && y < height) {
        float v[4];
        int offset[4];
        read_corners(map, height, width, stride, x, y, v, offset);
        const float fx = x - floorf(x), fy = y - floorf(y);
        sum += attention[at] * ((1 - fy) * ((1 - fx) * v[0] + fx * v[1]) +
                                fy * ((1 - fx) * v[2] + fx * v[3]));
      }
    }
  }
  out[index] = sum;
}

__global__ void backward_kernel(
    const float* grad_out, const float* value, const long long* shapes, const long long* starts,
    const float* locations, const float* attention, float* grad_value, float* grad_locations,
    float* grad_attention, int tokens, int heads, int channels, int levels, int queries,
    int points) {
  SHARED_FLOATS(partial);  // three numbers of each channel
  const int row = blockIdx.x, channel = threadIdx.x;
  const int head = row % heads, batch = row / heads / queries, stride = heads * channels;
  const float grad = grad_out[row * channels + channel];
  int at = row * levels * points;
  for (int level = 0; level < levels; ++level) {
    const int height = (int)shapes[2 * level], width = (int)shapes[2 * level + 1];
    const int origin = (batch * tokens + (int)starts[level]) * stride + head * channels + channel;
    for (int point = 0; point < points; ++point, ++at) {
      const float x = locations[2 * at] * width - 0.5f, y = locations[2 * at + 1] * height - 0.5f;
      float* own = partial + 3 * channel;
      own[0] = own[1] = own[2] = 0.f;
      if (x > -1 && y > -1 && x < width && y < height) {
        float v[4];
        int offset[4];
        read_corners(value + origin, height, width, stride, x, y, v, offset);
        const float fx = x - floorf(x), fy = y - floorf(y);
        const float weight[4] = {(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx};
        const float scaled = attention[at] * grad;
        for (int c = 0; c < 4; ++c) {
          if (offset[c] >= 0) atomicAdd(grad_value + origin + offset[c], weight[c] * scaled);
        }
        own[0] = width * scaled * ((1 - fy) * (v[1] - v[0]) + fy * (v[3] - v[2]));
        own[1] = height * scaled * ((1 - fx) * (v[2] - v[0]) + fx * (v[3] - v[1]));
        own[2] = grad *
                 (weight[0] * v[0] + weight[1] * v[1] + weight[2] * v[2] + weight[3] * v[3]);
      }
      __syncthreads();
      if (channel == 0) {
        float sums[3] = {0.f, 0.f, 0.f};
        for (int i = 0; i < 3 * channels; ++i) sums[i % 3] += partial[i];
        grad_locations[2 * at] = sums[0];
        grad_locations[2 * at + 1] = sums[1];
        grad_attention[at] = sums[2];
      }
      __syncthreads();
    }
  }
}

}  // namespace

extern "C" int published_forward(
    const float* value, const long long* shapes, const long long* starts, const float* locations,
    const float* attention, float* out, int batch, int tokens, int heads, int channels,
    int levels, int queries, int points, void* stream) {
  const int count = batch * queries * heads * channels;
  LAUNCH_BLOCKS(
      forward_kernel, (count + kForwardThreads - 1) / kForwardThreads, kForwardThreads, 0, stream,
      count, value, shapes, starts, locations, attention, out, tokens, heads, channels, levels,
      queries, points);
  return (int)cudaGetLastError();
}

extern "C" int published_backward(
    const float* grad_out, const float* value, const long long* shapes, const long long* starts,
    const float* locations, const float* attention, float* grad_value, float* grad_locations,
    float* grad_attention, int batch, int tokens, int heads, int channels, int levels,
    int queries, int points, void* stream) {
  LAUNCH_BLOCKS(
      backward_kernel, batch * queries * heads, channels, 3 * channels * sizeof(float), stream,
      grad_out, value, shapes, starts, locations, attention, grad_value, grad_locations,
      grad_attention, tokens, heads, channels, levels, queries, points);
  return (int)cudaGetLastError();
}
