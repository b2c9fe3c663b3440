#include "core/quantized_delta/delta_linear.h"

#include <stdexcept>

#include "core/quantized_delta/delta_linear.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

constexpr int64_t kMostTiles = 16, kRunsAThread = 8;
constexpr int64_t kColumnsTogether = 2048;  // of a token, prepared by one thread

static float* prepared_of(const DeltaProduct& product, void* workspace) {
  return reinterpret_cast<float*>(static_cast<uint8_t*>(workspace) + product.prepared_at);
}

// What every product's tokens are prepared to, in parts of kColumnsTogether columns.
template <class Format>
static void prepare_tokens(const typename Format::Word* x, const DeltaProduct* products,
                           const int64_t* tokens, void* workspace, int64_t product_count, int64_t columns,
                           int threads) {
  const DeltaProduct& last = products[product_count - 1];
  const int64_t parts = divide_up(columns, kColumnsTogether);
  const int64_t pieces = (last.first_token + last.token_count) * parts;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t slot = piece / parts, begin = piece % parts * kColumnsTogether;
    const DeltaProduct* product = products;
    while (slot >= product->first_token + product->token_count) ++product;
    const int64_t end = begin + kColumnsTogether < columns ? begin + kColumnsTogether : columns;
    const TokenLayout layout = TokenLayout::of(columns, product->matrix.bits);
    const Planes planes = Planes::of(columns, product->matrix.bits, product->matrix.values);
    float* const floats = prepared_of(*product, workspace) + (slot - product->first_token) * layout.floats;
    prepare<Format>(layout, planes, x + tokens[slot] * columns, begin, end, floats);
  }
}

// The tiles begin .. end - 1 of a product.
static void add_tiles(const DeltaProduct& product, const int64_t* places, const float* factors,
                      void* workspace, int64_t begin, int64_t end) {
  const DeltaMatrix& matrix = product.matrix;
  const TokenLayout layout = TokenLayout::of(matrix.columns, matrix.bits);
  const Planes planes = Planes::of(matrix.columns, matrix.bits, matrix.values);
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t row = tile * kTileRows, left = matrix.rows - row;
    const int64_t count = left < kTileRows ? left : kTileRows;
    const DeltaTile found(product, layout, planes, prepared_of(product, workspace), row, count);
    for (int64_t t = 0; t < product.token_count; ++t) {
      const int64_t slot = product.first_token + t;
      float* const to = reinterpret_cast<float*>(product.result) + places[slot] * matrix.rows + row;
      const float* const totals = found.totals(t);
      for (int64_t r = 0; r < count; ++r) to[r] += factors[slot] * totals[r];
    }
  }
}

void delta_linear(const void* x, WeightFormat format, const DeltaProduct* products, const int64_t* tokens,
                  const int64_t* places, const float* factors, void* workspace, int64_t product_count,
                  int64_t columns, int threads) {
  if (product_count == 0 || columns == 0) return;
  with_format(format, [=]<class Format>() {
    prepare_tokens<Format>(static_cast<const typename Format::Word*>(x), products, tokens, workspace,
                           product_count, columns, threads);
  });
  // A tile fetches the next one into the cache of its thread: runs of tiles are long, but there are some for each thread.
  int64_t tiles = 0, runs = 0;
  for (int64_t p = 0; p < product_count; ++p) tiles += divide_up(products[p].matrix.rows, kTileRows);
  if (tiles == 0) return;
  const int64_t share = divide_up(tiles, kRunsAThread * threads);
  const int64_t together = share < kMostTiles ? share : kMostTiles;
  for (int64_t p = 0; p < product_count; ++p)
    runs += divide_up(products[p].matrix.rows, kTileRows * together);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (int64_t run = 0; run < runs; ++run) {
    const DeltaProduct* product = products;
    int64_t mine = run;
    for (;; ++product) {
      const int64_t here = divide_up(product->matrix.rows, kTileRows * together);
      if (mine < here) break;
      mine -= here;
    }
    const int64_t all = divide_up(product->matrix.rows, kTileRows), begin = mine * together;
    add_tiles(*product, places, factors, workspace, begin, begin + together < all ? begin + together : all);
  }
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(delta_linear,
                   (const void* x, WeightFormat format, const DeltaProduct* products, const int64_t* tokens,
                    const int64_t* places, const float* factors, void* workspace, int64_t product_count,
                    int64_t columns, int threads),
                   (x, format, products, tokens, places, factors, workspace, product_count, columns, threads))

#ifdef GRAFTWORK_LEVEL_IS_baseline
int64_t delta_linear_token_bytes(int64_t columns, int64_t bits) {
  if (bits < 1 || bits > 16 || (bits != 3 && (bits & (bits - 1))))
    throw std::invalid_argument("delta_linear: bits must be 1, 2, 3, 4, 8 or 16");
  return static_cast<int64_t>(sizeof(float)) * baseline::TokenLayout::of(columns, bits).floats;
}
#endif

}  // namespace graftwork
