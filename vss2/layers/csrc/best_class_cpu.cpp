// The best class of every pixel so far, from the scores of some classes after the others.

#include <cstdint>

namespace {

// A pixel's scores lie side by side. Its best one is found without branches; in most pixels it
// does not beat the best of earlier classes, and then nobody asks which class it was.
template <int kClasses>
void keep(const float* scores, std::int64_t pixels, std::int64_t classes, std::int64_t first,
          float* best, std::uint8_t* labels, int threads) {
  const std::int64_t count = kClasses > 0 ? kClasses : classes;
#pragma omp parallel for num_threads(threads)
  for (std::int64_t i = 0; i < pixels; ++i) {
    const float* own = scores + i * count;
    float top = own[0];
#pragma omp simd reduction(max : top)
    for (std::int64_t c = 0; c < count; ++c) top = own[c] > top ? own[c] : top;
    if (top > best[i]) {
      std::int64_t c = 0;
      while (own[c] != top) ++c;
      best[i] = top;
      labels[i] = static_cast<std::uint8_t>(first + c);
    }
  }
}

}  // namespace

// Updates `best` and `labels` with the classes from `first` on: scores [pixels, classes]. The
// lowest class wins among equals. NaN never wins.
extern "C" void keep_best(const float* scores, std::int64_t pixels, std::int64_t classes,
                          std::int64_t first, float* best, std::uint8_t* labels, int threads) {
  if (classes == 16) {  // the usual chunk: its loop needs no count at run time
    keep<16>(scores, pixels, classes, first, best, labels, threads);
  } else {
    keep<0>(scores, pixels, classes, first, best, labels, threads);
  }
}
