// What the metrics ask of maps of ids, one byte a pixel.

#include <cstdint>
#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace {
constexpr std::int64_t kPlaces = 8;
}

// Adds pixels to counts[label * 256 + prediction]. Neighbouring pixels nearly always fall into the
// same bin, and an addition that must wait for the one before it costs five times as much as one
// that need not. The frame is therefore read at eight places far from each other at once.
extern "C" void joint_histogram(const std::uint8_t* labels, const std::uint8_t* predictions,
                                std::int64_t pixels, std::int64_t* counts) {
  const std::int64_t stretch = pixels / kPlaces;
  for (std::int64_t i = 0; i < stretch; ++i) {
    for (std::int64_t k = 0; k < kPlaces; ++k) {
      const std::int64_t at = k * stretch + i;
      ++counts[labels[at] << 8 | predictions[at]];
    }
  }
  for (std::int64_t at = kPlaces * stretch; at < pixels; ++at) {
    ++counts[labels[at] << 8 | predictions[at]];
  }
}

// One bit a pixel, lowest first: whether both maps hold the same id. Unused bits of the last byte
// are 0.
extern "C" void equal_bits(const std::uint8_t* one, const std::uint8_t* other,
                           std::int64_t pixels, std::uint8_t* bits) {
  std::int64_t i = 0;
#ifdef __AVX2__
  for (; i + 32 <= pixels; i += 32) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(one + i));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(other + i));
    const std::uint32_t equal = _mm256_movemask_epi8(_mm256_cmpeq_epi8(a, b));
    for (int k = 0; k < 4; ++k) bits[i / 8 + k] = equal >> 8 * k;
  }
#endif
  for (; i < pixels; i += 8) {
    std::uint8_t byte = 0;
    for (int k = 0; k < 8 && i + k < pixels; ++k) byte |= (one[i + k] == other[i + k]) << k;
    bits[i / 8] = byte;
  }
}
