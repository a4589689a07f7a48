// Multi-scale deformable attention on the CPU: forward and backward, float and double.
//
// A task of the forward pass is a block of queries of one head, one of the backward pass is one
// level of one head: its gradients of `value` are its own, so threads share nothing and the result
// does not depend on their number. Channels of a head run in vector registers.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t kQueryBlock = 128;
constexpr int kPointBlock = 64;

struct Problem {
  int64_t batch, tokens, heads, channels, levels, queries, points;
  const int64_t* shapes;  // [levels, 2]: height, width
  const int64_t* starts;  // [levels]
};

// D channels in registers of at most 64 bytes.
template <typename T, int D>
struct Row {
  static constexpr int kLanes = std::min<int>(D, 64 / sizeof(T));
  static constexpr int kParts = D / kLanes;
  typedef T Lanes __attribute__((vector_size(kLanes * sizeof(T))));
  Lanes part[kParts];

  Row() {}
  explicit Row(int64_t) {
    for (int k = 0; k < kParts; ++k) part[k] = Lanes{};
  }
  Row(const T* from, int64_t) { std::memcpy(part, from, sizeof(part)); }
  void store(T* to) const { std::memcpy(to, part, sizeof(part)); }
  void add(T scale, const T* from) {
    const Row row(from, D);
    for (int k = 0; k < kParts; ++k) part[k] += scale * row.part[k];
  }
  void add_to(T scale, T* to) const {
    Row row(to, D);
    for (int k = 0; k < kParts; ++k) row.part[k] += scale * part[k];
    row.store(to);
  }
  T dot(const T* other) const {
    const Row row(other, D);
    Lanes sum = part[0] * row.part[0];
    for (int k = 1; k < kParts; ++k) sum += part[k] * row.part[k];
    constexpr int kShort = std::min<int>(kLanes, 16 / sizeof(T));
    typedef T Short __attribute__((vector_size(kShort * sizeof(T))));
    Short quarters[kLanes / kShort];
    std::memcpy(quarters, &sum, sizeof(sum));
    for (int width = kLanes / kShort / 2; width > 0; width /= 2) {
      for (int k = 0; k < width; ++k) quarters[k] += quarters[k + width];
    }
    T total = quarters[0][0];
    for (int k = 1; k < kShort; ++k) total += quarters[0][k];
    return total;
  }
};

// Any number of channels.
template <typename T>
struct Row<T, 0> {
  std::vector<T> part;

  explicit Row(int64_t channels) : part(channels) {}
  Row(const T* from, int64_t channels) : part(from, from + channels) {}
  void store(T* to) const { std::copy(part.begin(), part.end(), to); }
  void add(T scale, const T* from) {
    for (size_t k = 0; k < part.size(); ++k) part[k] += scale * from[k];
  }
  void add_to(T scale, T* to) const {
    for (size_t k = 0; k < part.size(); ++k) to[k] += scale * part[k];
  }
  T dot(const T* other) const {
    T sum = 0;
    for (size_t k = 0; k < part.size(); ++k) sum += part[k] * other[k];
    return sum;
  }
};

// The four pixels of some points of a head and their weights; weight 0 where there is no pixel.
template <typename T>
struct Corners {
  int32_t token[4][kPointBlock];
  T weight[4][kPointBlock];
};

// Sizes of the levels, repeated for each point, so that one loop over the points is vectorised.
template <typename T>
struct PointLevels {
  int count;
  std::vector<T> height, width;
  std::vector<int32_t> start, row;

  explicit PointLevels(const Problem& p) : count(int(p.levels * p.points)) {
    for (int i = 0; i < count; ++i) {
      const int64_t level = i / p.points;
      height.push_back(T(p.shapes[2 * level]));
      width.push_back(T(p.shapes[2 * level + 1]));
      row.push_back(int32_t(p.shapes[2 * level + 1]));
      start.push_back(int32_t(p.starts[level]));
    }
  }
};

// Of `count` points from number `first` of the head on.
template <typename T>
inline void find_corners(
    const PointLevels<T>& level, int first, int count, const T* locations, const T* attention,
    Corners<T>& corners) {
  const T *heights = level.height.data() + first, *widths = level.width.data() + first;
  const int32_t *starts = level.start.data() + first, *rows = level.row.data() + first;
#pragma GCC ivdep
  for (int i = 0; i < count; ++i) {
    const T height = heights[i], width = widths[i];
    T x = locations[2 * i] * width - T(0.5), y = locations[2 * i + 1] * height - T(0.5);
    const bool inside = (x > -1) & (y > -1) & (x < width) & (y < height);  // false for NaN
    x = inside ? x : T(0);
    y = inside ? y : T(0);
    const T x0 = std::floor(x), y0 = std::floor(y), fx = x - x0, fy = y - y0;
    const T scale = inside ? attention[i] : T(0);
    const T left = x0 >= 0 ? 1 - fx : T(0), right = x0 + 1 < width ? fx : T(0);
    const T top = y0 >= 0 ? scale * (1 - fy) : T(0), bottom = y0 + 1 < height ? scale * fy : T(0);
    const int32_t token = starts[i] + int32_t(y0) * rows[i] + int32_t(x0);
    corners.token[0][i] = token;
    corners.token[1][i] = token + 1;
    corners.token[2][i] = token + rows[i];
    corners.token[3][i] = token + rows[i] + 1;
    corners.weight[0][i] = top * left;
    corners.weight[1][i] = top * right;
    corners.weight[2][i] = bottom * left;
    corners.weight[3][i] = bottom * right;
  }
}

template <typename T, int D>
void forward(
    const Problem& p, const T* value, const T* locations, const T* attention, T* out,
    int threads) {
  const int64_t stride = p.heads * p.channels, samples = p.levels * p.points;
  const int64_t blocks = (p.queries + kQueryBlock - 1) / kQueryBlock;
  const PointLevels<T> level(p);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t task = 0; task < p.batch * p.heads * blocks; ++task) {
    const int64_t n = task / (p.heads * blocks), head = task / blocks % p.heads;
    const int64_t first = task % blocks * kQueryBlock;
    const int64_t last = std::min(first + kQueryBlock, p.queries);
    const T* map = value + n * p.tokens * stride + head * p.channels;
    Corners<T> corners;
    for (int64_t query = first; query < last; ++query) {
      const int64_t row = (n * p.queries + query) * p.heads + head;
      Row<T, D> sum(p.channels);
      for (int begin = 0; begin < level.count; begin += kPointBlock) {
        const int count = std::min(kPointBlock, level.count - begin);
        const int64_t point = row * samples + begin;
        find_corners(level, begin, count, locations + 2 * point, attention + point, corners);
        for (int i = 0; i < count; ++i) {
          for (int c = 0; c < 4; ++c) {
            const T weight = corners.weight[c][i];
            if (weight != 0) sum.add(weight, map + corners.token[c][i] * stride);
          }
        }
      }
      sum.store(out + row * p.channels);
    }
  }
}

// Gradients of one point from the dot products of its corners with the gradient of the output.
template <typename T, int D>
inline void point_backward(
    const Row<T, D>& grad, const T* map, T* grad_map, int64_t height, int64_t width,
    int64_t stride, const T* location, T attention, T* grad_location, T* grad_attention) {
  const T x = location[0] * T(width) - T(0.5), y = location[1] * T(height) - T(0.5);
  if (!(x > -1 && y > -1 && x < T(width) && y < T(height))) {  // NaN too
    grad_location[0] = grad_location[1] = *grad_attention = 0;
    return;
  }
  const T floor_x = std::floor(x), floor_y = std::floor(y), fx = x - floor_x, fy = y - floor_y;
  const int64_t x0 = int64_t(floor_x), y0 = int64_t(floor_y);
  const T along_x[2] = {1 - fx, fx}, along_y[2] = {1 - fy, fy};
  T dots[2][2] = {{0, 0}, {0, 0}};
  for (int dy = 0; dy < 2; ++dy) {
    if (y0 + dy < 0 || y0 + dy >= height) continue;
    for (int dx = 0; dx < 2; ++dx) {
      if (x0 + dx < 0 || x0 + dx >= width) continue;
      const int64_t offset = ((y0 + dy) * width + x0 + dx) * stride;
      dots[dy][dx] = grad.dot(map + offset);
      grad.add_to(attention * along_y[dy] * along_x[dx], grad_map + offset);
    }
  }
  const T top = along_x[0] * dots[0][0] + along_x[1] * dots[0][1];
  const T bottom = along_x[0] * dots[1][0] + along_x[1] * dots[1][1];
  const T left = along_y[0] * dots[0][0] + along_y[1] * dots[1][0];
  const T right = along_y[0] * dots[0][1] + along_y[1] * dots[1][1];
  grad_location[0] = attention * T(width) * (right - left);
  grad_location[1] = attention * T(height) * (bottom - top);
  *grad_attention = along_y[0] * top + along_y[1] * bottom;
}

template <typename T, int D>
void backward(
    const Problem& p, const T* grad_out, const T* value, const T* locations, const T* attention,
    T* grad_value, T* grad_locations, T* grad_attention, int threads) {
  const int64_t stride = p.heads * p.channels;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t task = 0; task < p.batch * p.heads * p.levels; ++task) {
    const int64_t n = task / (p.heads * p.levels), head = task / p.levels % p.heads;
    const int64_t level = task % p.levels;
    const int64_t height = p.shapes[2 * level], width = p.shapes[2 * level + 1];
    const int64_t origin = (n * p.tokens + p.starts[level]) * stride + head * p.channels;
    for (int64_t query = 0; query < p.queries; ++query) {
      const int64_t row = (n * p.queries + query) * p.heads + head;
      const Row<T, D> grad(grad_out + row * p.channels, p.channels);
      const int64_t first = (row * p.levels + level) * p.points;
      for (int64_t i = first; i < first + p.points; ++i) {
        point_backward(
            grad, value + origin, grad_value + origin, height, width, stride, locations + 2 * i,
            attention[i], grad_locations + 2 * i, grad_attention + i);
      }
    }
  }
}

#define FOR_CHANNELS(call)                 \
  switch (p.channels) {                    \
    case 8: call(8); break;                \
    case 16: call(16); break;              \
    case 32: call(32); break;              \
    case 64: call(64); break;              \
    default: call(0);                      \
  }

template <typename T>
void run_forward(
    const Problem& p, const T* value, const T* locations, const T* attention, T* out,
    int threads) {
#define FORWARD(D) forward<T, D>(p, value, locations, attention, out, threads)
  FOR_CHANNELS(FORWARD)
#undef FORWARD
}

template <typename T>
void run_backward(
    const Problem& p, const T* grad_out, const T* value, const T* locations, const T* attention,
    T* grad_value, T* grad_locations, T* grad_attention, int threads) {
#define BACKWARD(D)                                                                      \
  backward<T, D>(                                                                        \
      p, grad_out, value, locations, attention, grad_value, grad_locations, grad_attention, threads)
  FOR_CHANNELS(BACKWARD)
#undef BACKWARD
}

}  // namespace

// sizes: batch, tokens, heads, channels, levels, queries, points. Every array is contiguous;
// grad_value is zero on entry. The caller has checked that every level lies within the tokens and
// that there are fewer than 2^31 of them.
#define EXPORT(T, suffix)                                                                   \
  extern "C" void vss2_msda_forward_##suffix(                                               \
      const int64_t* sizes, const int64_t* shapes, const int64_t* starts, const T* value,   \
      const T* locations, const T* attention, T* out, int threads) {                        \
    const Problem p{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6],   \
                    shapes, starts};                                                        \
    run_forward<T>(p, value, locations, attention, out, threads);                           \
  }                                                                                         \
  extern "C" void vss2_msda_backward_##suffix(                                              \
      const int64_t* sizes, const int64_t* shapes, const int64_t* starts, const T* grad_out, \
      const T* value, const T* locations, const T* attention, T* grad_value,                \
      T* grad_locations, T* grad_attention, int threads) {                                  \
    const Problem p{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6],   \
                    shapes, starts};                                                        \
    run_backward<T>(p, grad_out, value, locations, attention, grad_value, grad_locations,   \
                    grad_attention, threads);                                               \
  }

EXPORT(float, float32)
EXPORT(double, float64)
