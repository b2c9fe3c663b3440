// gather_values, restore_values, write_values, gather_gradients and swap_values on the host, bit for bit
// against the CPU's loops; the sum of squares within rounding of them.
#include "supports.h"

#include "core/sparse_update/values.cpp"
#include "cuda/sparse_update/swap_values.cu"
#include "cuda/sparse_update/values.cu"

namespace {

using graftwork::WeightFormat;
using harness::Buffer;
using harness::check;
using supports::Support;
using supports::Tensors;

constexpr float kScale = -0.75f;
constexpr double kTolerance = 1e-12;  // relative: far above the rounding of a few thousand double additions

struct Case {
  const Support& support;
  int format, index_bytes;
  std::string what;

  int bytes() const { return supports::word_bytes(format); }
  WeightFormat weight_format() const { return static_cast<WeightFormat>(format); }
};

void check_gather(const Case& of) {
  const Support& on = of.support;
  const Buffer indices = on.indices(of.index_bytes), wanted(on.entries() * of.bytes());
  const Tensors tensors(on.numels, of.format, 1, true);
  graftwork::gather_values(tensors.sources(), indices.data(), of.index_bytes, on.offsets.data(), on.tensors(),
                           of.bytes(), wanted.data(), 1);
  harness::under_each_schedule([&](const std::string& schedule) {
    const Buffer got(on.entries() * of.bytes());
    check(graftwork::cuda::gather_values(tensors.sources(), indices.data(), of.index_bytes, on.offsets.data(),
                                         on.tensors(), of.bytes(), got.data(), on.entries(), nullptr) == 0,
          "gather starts: " + of.what + schedule);
    check(got.content() == wanted.content(), "gathered: " + of.what + schedule);
  });
}

void check_restore(const Case& of) {
  const Support& on = of.support;
  const Buffer indices = on.indices(of.index_bytes),
               saved(supports::random_words(on.entries(), of.format, 5, true), 0);
  const Tensors wanted(on.numels, of.format, 1);
  graftwork::restore_values(wanted.table.data(), indices.data(), of.index_bytes, on.offsets.data(),
                            on.tensors(), of.bytes(), saved.data(), 1);
  harness::under_each_schedule([&](const std::string& schedule) {
    const Tensors got(on.numels, of.format, 1);
    check(graftwork::cuda::restore_values(got.table.data(), indices.data(), of.index_bytes, on.offsets.data(),
                                          on.tensors(), of.bytes(), saved.data(), on.entries(), nullptr) == 0,
          "restore starts: " + of.what + schedule);
    check(supports::same(got, wanted, on.numels, of.format), "restored: " + of.what + schedule);
  });
}

void check_write(const Case& of) {
  const Support& on = of.support;
  const Buffer indices = on.indices(of.index_bytes),
               base(supports::random_words(on.entries(), of.format, 5, true), 0);
  const auto values = supports::floats(supports::random_words(on.entries(), 2, 6, true));
  const Tensors wanted(on.numels, of.format, 1);
  graftwork::write_values(wanted.table.data(), indices.data(), of.index_bytes, on.offsets.data(),
                          on.tensors(), of.weight_format(), base.data(), values.data(), kScale, 1);
  harness::under_each_schedule([&](const std::string& schedule) {
    const Tensors got(on.numels, of.format, 1);
    check(graftwork::cuda::write_values(got.table.data(), indices.data(), of.index_bytes, on.offsets.data(),
                                        on.tensors(), of.weight_format(), base.data(), values.data(), kScale,
                                        on.entries(), nullptr) == 0,
          "write starts: " + of.what + schedule);
    check(supports::same(got, wanted, on.numels, of.format), "written: " + of.what + schedule);
  });
}

void check_gradients(const Case& of, bool special) {
  const Support& on = of.support;
  const Buffer indices = on.indices(of.index_bytes);
  const Tensors grads(on.numels, of.format, 1, special);
  supports::Array<float> wanted(on.entries());
  double sum = 0, first_sum = 0;
  int64_t nonfinite = 0;
  graftwork::gather_gradients(grads.sources(), indices.data(), of.index_bytes, on.offsets.data(),
                              on.tensors(), of.weight_format(), kScale, wanted.data(), &sum, &nonfinite, 1);
  bool is_first = true;
  harness::under_each_schedule([&](const std::string& schedule) {
    supports::Array<float> got(on.entries());
    double my_sum = -1;
    int64_t my_nonfinite = -1;
    const Buffer workspace(graftwork::cuda::gather_gradients_workspace_bytes(on.entries()));
    check(
        graftwork::cuda::gather_gradients(grads.sources(), indices.data(), of.index_bytes, on.offsets.data(),
                                          on.tensors(), of.weight_format(), kScale, got.data(), &my_sum,
                                          &my_nonfinite, on.entries(), workspace.data(), nullptr) == 0,
        "gathering gradients starts: " + of.what + schedule);
    if (is_first) first_sum = my_sum;
    is_first = false;
    check(supports::same(got, wanted), "gradients: " + of.what + schedule);
    check(my_nonfinite == nonfinite, "gradients that are not finite: " + of.what + schedule);
    check(std::isfinite(sum) ? std::abs(my_sum - sum) <= kTolerance * sum : !std::isfinite(my_sum),
          "sum of squares: " + of.what + schedule);
    check(std::memcmp(&my_sum, &first_sum, sizeof my_sum) == 0, "bits of the sum: " + of.what + schedule);
  });
}

// Two supports of the same tensors; one of them may be empty, and `after` may be `before` again.
struct Swap {
  const Support &before, &after;
  int format, index_bytes;
  Buffer before_indices, after_indices, before_base, after_base;
  Tensors tensors;
  supports::Array<float> values;

  Swap(const Support& off, const Support& on, int format_, int index_bytes_)
      : before(off),
        after(on),
        format(format_),
        index_bytes(index_bytes_),
        before_indices(off.indices(index_bytes)),
        after_indices(on.indices(index_bytes)),
        before_base(supports::random_words(off.entries(), format, 5, true), 0),
        after_base(on.entries() * supports::word_bytes(format)),
        tensors(on.numels, format, 1),
        values(supports::floats(supports::random_words(on.entries(), 2, 6, true))) {}

  void on_cpu() {
    std::vector<int64_t> offsets;
    for (size_t t = 0; t < before.offsets.size(); ++t)
      offsets.push_back(before.offsets[t] + after.offsets[t]);
    graftwork::swap_values(tensors.table.data(), after.tensors(), static_cast<WeightFormat>(format),
                           index_bytes, before_indices.data(), before.offsets.data(), before_base.data(),
                           after_indices.data(), after.offsets.data(), values.data(), kScale,
                           after_base.data(), offsets.data(), 1);
  }

  int on_gpu() {
    const int64_t entries = before.entries() + after.entries();
    const Buffer workspace(graftwork::cuda::swap_values_workspace_bytes(entries));
    return graftwork::cuda::swap_values(
        tensors.table.data(), after.tensors(), static_cast<WeightFormat>(format), index_bytes,
        before_indices.data(), before.offsets.data(), before_base.data(), after_indices.data(),
        after.offsets.data(), values.data(), kScale, after_base.data(), entries, workspace.data(), nullptr);
  }
};

void check_swap(const Support& before, const Support& after, int format, int index_bytes,
                const std::string& what) {
  Swap wanted(before, after, format, index_bytes);
  wanted.on_cpu();
  harness::under_each_schedule([&](const std::string& schedule) {
    Swap got(before, after, format, index_bytes);
    check(got.on_gpu() == 0, "swap starts: " + what + schedule);
    check(supports::same(got.tensors, wanted.tensors, after.numels, format), "swapped: " + what + schedule);
    check(got.after_base.content() == wanted.after_base.content(), "base: " + what + schedule);
  });
}

void check_all() {
  for (const int64_t entries : harness::kSizes)
    for (const int tensors : {1, 3, 40})
      for (const int format : supports::kFormats)
        for (const int bytes : supports::kIndexBytes) {
          const Support support = supports::make_support(entries, tensors, 7);
          const std::string what = std::to_string(entries) + " entries of " + std::to_string(tensors) +
                                   " tensors, format " + std::to_string(format) + ", " +
                                   std::to_string(bytes) + " bytes, ";
          const Case of{support, format, bytes, what};
          check_gather(of);
          check_restore(of);
          check_write(of);
          check_gradients(of, false);
          check_gradients(of, true);
          const Support other = supports::other_support(support, 8),
                        none = supports::other_support(support, 0);
          check_swap(support, other, format, bytes, what);
          check_swap(support, support, format, bytes, "again, " + what);
          check_swap(support, none, format, bytes, "off only, " + what);
          check_swap(none, support, format, bytes, "on only, " + what);
        }
  check(graftwork::cuda::gather_values(nullptr, nullptr, 3, nullptr, 1, 4, nullptr, 1, nullptr) ==
            graftwork::cuda::kInvalidArgument,
        "indices of 3 bytes are refused");
  check(graftwork::cuda::restore_values(nullptr, nullptr, 4, nullptr, 1, 8, nullptr, 1, nullptr) ==
            graftwork::cuda::kInvalidArgument,
        "words of 8 bytes are refused");
  check(graftwork::cuda::write_values(nullptr, nullptr, 4, nullptr, 1, static_cast<WeightFormat>(3), nullptr,
                                      nullptr, 1, 1, nullptr) == graftwork::cuda::kInvalidArgument,
        "an unknown format is refused");
}

void count_all() {
  const Support support = supports::whole_tensors(2, 2 * graftwork::cuda::kEntryTile);
  Support before = support,
          after = support;  // one tensor's weights each, so that what is touched lies together
  before.keep_tensor(0);
  after.keep_tensor(1);
  for (const int format : supports::kFormats)
    for (const int bytes : supports::kIndexBytes) {
      const Buffer indices = support.indices(bytes), words(support.entries() * 4);
      const Tensors tensors(support.numels, format, 1);
      const auto values = supports::floats(supports::random_words(support.entries(), 2, 6));
      const int64_t* const offsets = support.offsets.data();
      const int width = supports::word_bytes(format);
      const int64_t entries = support.entries(), count = support.tensors();
      const auto weights = static_cast<WeightFormat>(format);
      graftwork::cuda::gather_values(tensors.sources(), indices.data(), bytes, offsets, count, width,
                                     words.data(), entries, nullptr);
      graftwork::cuda::restore_values(tensors.table.data(), indices.data(), bytes, offsets, count, width,
                                      words.data(), entries, nullptr);
      graftwork::cuda::write_values(tensors.table.data(), indices.data(), bytes, offsets, count, weights,
                                    words.data(), values.data(), kScale, entries, nullptr);
      double sum = 0;
      int64_t nonfinite = 0;
      const Buffer workspace(graftwork::cuda::gather_gradients_workspace_bytes(entries));
      graftwork::cuda::gather_gradients(tensors.sources(), indices.data(), bytes, offsets, count, weights,
                                        kScale, words.as<float>(), &sum, &nonfinite, entries,
                                        workspace.data(), nullptr);
      Swap(before, after, format, bytes).on_gpu();
    }
}

}  // namespace

int main(int argc, char** argv) { return harness::run(argc, argv, check_all, count_all); }
