// The best keys of every query cell, by dot product, for the CPU.
//
// Maps are stored row by row, each row as channels x pitch floats (pitch: the width rounded up to a
// multiple of 16, so that a whole vector can be read at every column). Queries are taken in tiles
// of 2 x 4 cells. A tile meets a row of keys in a few vectors, just those that hold keys within the
// radius of one of its cells; the products of a key row are looked through at once and forgotten.
// Channels are taken in blocks, so that a block of a key row stays in the first cache while all tiles
// of two rows of queries meet it; sums wait in a buffer meanwhile.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

namespace {

constexpr int64_t kRows = 2;
constexpr int64_t kColumns = 4;
constexpr int64_t kTile = kRows * kColumns;
constexpr int64_t kBlock = 64;  // channels
constexpr int64_t kLine = 16;   // floats in a line of the cache
// Floats in a vector, and vectors of keys per call: as many sums as the registers hold.
#ifdef __AVX512F__
constexpr int64_t kLanes = 16, kMost = 2;
#else
constexpr int64_t kLanes = 8, kMost = 1;
#endif

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
typedef float Unaligned
    __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));

struct Maps {
  int64_t channels, height, width, pitch;
};

// The k best keys of a query so far, in falling order; of equal ones the lower index comes first.
struct Best {
  float* values;
  int64_t* index;
  int64_t k;

  bool takes(float value, int64_t key) const {
    return value > values[k - 1] || (value == values[k - 1] && key < index[k - 1]);
  }

  void insert(float value, int64_t key) const {
    int64_t at = k - 1;
    for (; at > 0; --at) {
      const bool before =
          value > values[at - 1] || (value == values[at - 1] && key < index[at - 1]);
      if (!before) break;
      values[at] = values[at - 1];
      index[at] = index[at - 1];
    }
    values[at] = value;
    index[at] = key;
  }
};

// Columns to each side of the centre that lie within `radius`, `dy` rows away; -1 for none.
int64_t half_width(double radius, int64_t dy, int64_t width) {
  const double rest = radius * radius - double(dy) * double(dy);
  int64_t half = -1;
  while (half < width && double(half + 1) * double(half + 1) < rest) ++half;
  return half;
}

// Adds the dot products of a tile [count, kTile] and keys [count, pitch] to sums
// [kTile, V * kLanes].
template <int V>
inline void add_products(const float* tile, const float* keys, int64_t count, int64_t pitch,
                         float* out) {
  Vector sums[kTile][V];
  for (int64_t m = 0; m < kTile; ++m) {
    for (int v = 0; v < V; ++v) {
      sums[m][v] = *reinterpret_cast<const Unaligned*>(out + (m * kMost + v) * kLanes);
    }
  }
  for (int64_t c = 0; c < count; ++c) {
    Vector key[V];
    for (int v = 0; v < V; ++v) {
      key[v] = *reinterpret_cast<const Unaligned*>(keys + c * pitch + v * kLanes);
    }
    for (int64_t m = 0; m < kTile; ++m) {
      for (int v = 0; v < V; ++v) sums[m][v] += tile[c * kTile + m] * key[v];
    }
  }
  for (int64_t m = 0; m < kTile; ++m) {
    for (int v = 0; v < V; ++v) {
      *reinterpret_cast<Unaligned*>(out + (m * kMost + v) * kLanes) = sums[m][v];
    }
  }
}

// Queries of the rows from `top` on as [tiles, channels, kTile]; 0 outside the map.
void gather_tiles(const float* query, const Maps& maps, int64_t top, std::vector<float>& tiles) {
  std::fill(tiles.begin(), tiles.end(), 0.0f);
  for (int64_t row = 0; row < kRows && top + row < maps.height; ++row) {
    for (int64_t c = 0; c < maps.channels; ++c) {
      const float* source = query + ((top + row) * maps.channels + c) * maps.pitch;
      for (int64_t x = 0; x < maps.width; ++x) {
        const int64_t tile = x / kColumns, cell = row * kColumns + x % kColumns;
        tiles[(tile * maps.channels + c) * kTile + cell] = source[x];
      }
    }
  }
}

// One map of keys: its first slot, in how many slots it stands, and its reach.
struct Keys {
  const float* data;
  int64_t slot, repeats;
  std::vector<int64_t> half;  // by distance in rows
};

class Band {
 public:
  Band(const float* query, const Maps& maps, int64_t top, float* values, int64_t* index, int64_t k)
      : maps_(maps), top_(top), values_(values), index_(index), k_(k) {
    const int64_t tiles = (maps.width + kColumns - 1) / kColumns;
    tiles_.resize(tiles * maps.channels * kTile);
    gather_tiles(query, maps, top, tiles_);
  }

  // Compare with one row of keys.
  void meet(const Keys& keys, int64_t key_row) {
    int64_t half[kRows], widest = -1;
    for (int64_t row = 0; row < kRows; ++row) {
      const int64_t distance = std::abs(key_row - top_ - row);
      half[row] = top_ + row < maps_.height ? keys.half[distance] : -1;
      widest = std::max(widest, half[row]);
    }
    if (widest < 0) return;
    pieces_.clear();
    for (int64_t left = 0; left < maps_.width; left += kColumns) {
      const int64_t end = std::min(maps_.width, left + kColumns + widest);
      int64_t begin = std::max<int64_t>(0, left - widest);
      while (begin < end) {
        const int64_t vectors = end - begin > kLanes ? kMost : 1;
        const int64_t stop = std::min(end, begin + vectors * kLanes);
        pieces_.push_back({left, begin, stop, vectors,
                           std::min(begin, maps_.pitch - vectors * kLanes)});
        begin = stop;
      }
    }
    sum_up(keys.data + key_row * maps_.channels * maps_.pitch);
    for (size_t i = 0; i < pieces_.size(); ++i) {
      choose(keys, key_row, pieces_[i], sums_.data() + i * kSums, half);
    }
  }

 private:
  static constexpr int64_t kSums = kTile * kMost * kLanes;

  // A tile, by its left column, and the keys of columns begin..stop; read from `first` on.
  struct Piece {
    int64_t left, begin, stop, vectors, first;
  };

  // The products of all pieces with a row of keys [channels, pitch].
  void sum_up(const float* row) {
    sums_.assign(pieces_.size() * kSums, 0.0f);
    const int64_t share = kBlock * maps_.pitch / int64_t(pieces_.size()) + 1;
    for (int64_t c = 0; c < maps_.channels; c += kBlock) {
      const int64_t count = std::min(kBlock, maps_.channels - c);
      // The next block follows in memory, that of the next row after the last one.
      const float* ahead = row + (c + kBlock) * maps_.pitch;
      for (size_t i = 0; i < pieces_.size(); ++i) {
        const Piece& piece = pieces_[i];
        for (int64_t f = 0; f < share; f += kLine) __builtin_prefetch(ahead + f, 0, 2);
        ahead += share;
        const float* tile =
            tiles_.data() + (piece.left / kColumns * maps_.channels + c) * kTile;
        const float* keys = row + c * maps_.pitch + piece.first;
        float* out = sums_.data() + i * kSums;
        if (piece.vectors == kMost) {
          add_products<kMost>(tile, keys, count, maps_.pitch, out);
        } else {
          add_products<1>(tile, keys, count, maps_.pitch, out);
        }
      }
    }
  }

  void choose(const Keys& keys, int64_t key_row, const Piece& piece, const float* sums,
              const int64_t* half) {
    for (int64_t m = 0; m < kTile; ++m) {
      const int64_t reach = half[m / kColumns], x = piece.left + m % kColumns;
      if (reach < 0 || x >= maps_.width) continue;
      const int64_t query = (top_ + m / kColumns) * maps_.width + x;
      const Best best{values_ + query * k_, index_ + query * k_, k_};
      const int64_t low = std::max(piece.begin, x - reach);
      const int64_t high = std::min(piece.stop, x + reach + 1);
      look_through(best, sums + m * kMost * kLanes + (low - piece.first), high - low, keys,
                   key_row * maps_.width + low);
    }
  }

  void look_through(const Best& best, const float* found, int64_t count, const Keys& keys,
                    int64_t position) {
    const float least = best.values[k_ - 1];
    int any = 0;
    for (int64_t i = 0; i < count; ++i) any |= found[i] >= least;
    if (!any) return;
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t copy = 0; copy < keys.repeats; ++copy) {
        const int64_t key =
            (keys.slot + copy) * maps_.height * maps_.width + position + i;
        if (!best.takes(found[i], key)) break;
        best.insert(found[i], key);
      }
    }
  }

  Maps maps_;
  int64_t top_;
  float* values_;
  int64_t* index_;
  int64_t k_;
  std::vector<float> tiles_;  // [tiles, channels, kTile]
  std::vector<Piece> pieces_;
  std::vector<float> sums_;  // [pieces, kTile, kMost * kLanes]
};

}  // namespace

// query, keys[n]: [height, channels, pitch]; values: [height * width, k] filled with -infinity;
// index: the same shape, slot * height * width + y * width + x.
extern "C" void vss2_local_correlation(const float* query, const float* const* keys,
                                  const double* radii, const int64_t* repeats, int64_t num_keys,
                                  int64_t channels, int64_t height, int64_t width, int64_t pitch,
                                  int64_t k, float* values, int64_t* index, int64_t num_threads) {
  const Maps maps{channels, height, width, pitch};
  std::vector<Keys> all(num_keys);
  int64_t slot = 0;
  for (int64_t n = 0; n < num_keys; ++n) {
    all[n] = {keys[n], slot, repeats[n], {}};
    slot += repeats[n];
    for (int64_t dy = 0; dy < height + kRows; ++dy) {
      all[n].half.push_back(half_width(radii[n], dy, width));
    }
  }
  const int64_t bands = (height + kRows - 1) / kRows;
#pragma omp parallel for schedule(dynamic) num_threads(num_threads)
  for (int64_t number = 0; number < bands; ++number) {
    const int64_t top = number * kRows;
    Band band(query, maps, top, values, index, k);
    // The last maps are the nearest in time: they raise the bar for the others at once.
    for (int64_t n = num_keys - 1; n >= 0; --n) {
      for (int64_t row = 0; row < height; ++row) band.meet(all[n], row);
    }
  }
}
