// The loops of thresholds.h. A sample says between which scores the threshold is likely to be. A reading counts what is
// above that range, and a histogram of what is in it; where its bins are wider than a score, another reading looks into
// the bin that holds the threshold. The last histogram is kept for each chunk, so that the place of the last tie is
// looked for in one of them only. A range that misses the threshold is replaced by that of all scores.
#pragma once

#include "core/merge/range.inl"
#include "core/merge/score_streams.inl"
#include "core/sparse_update/threshold.inl"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kWideBins = 4096,
              kWideTables = 2;  // of a thread; equal scores in a row wait for no other's store
constexpr int kFineBins = 256, kFineTables = 4;  // of a chunk: a score each
constexpr int64_t kLeastSample = int64_t{1} << 12, kMostSample = int64_t{1} << 17;
constexpr int64_t kSampledShare = 128;  // one of so many is sampled, within these bounds
constexpr int kSampleRun = 16;          // neighbours share cache lines

// Scores to sample; 0: so few are all looked at at once.
inline int64_t sample_size(int64_t numel) {
  if (numel < kLeastSample * 16) return 0;
  int64_t size = kLeastSample;
  while (size < kMostSample && 2 * size <= numel / kSampledShare) size *= 2;
  return size;
}

// What is known of one stream.
struct StreamSearch {
  int64_t keep, least, span;  // the threshold is in [least, least + span) if the sample does not mislead
  int shift;                  // bins are 2^shift scores wide
  bool done;
  int64_t bits, ties, cut;

  void look_at_all() {
    least = 0;
    span = int64_t{1} << 31;
    choose_bins();
  }
  bool fine() const { return span <= kFineBins; }
  void choose_bins() {
    shift = 0;
    if (fine()) return;
    while ((span - 1) >> shift >= kWideBins) ++shift;
  }
};

// The memory of one search: shared tables, then each thread's.
struct SearchRoom {
  uint8_t* memory;
  int streams;
  int64_t chunks, room_bytes;

  static int64_t fine_bytes(int streams, int64_t chunks) { return 4 * kFineBins * chunks * streams; }
  static int64_t wide_bytes(int streams) { return 8 * int64_t{kWideBins} * streams; }
  static int64_t thread_bytes(int streams, int64_t room_bytes) {
    return 4 * int64_t{kWideBins} * kWideTables * streams + room_bytes;
  }

  static int64_t bytes(int streams, int64_t chunks, int64_t room_bytes, int threads, int64_t sampled) {
    const int64_t searched =
        fine_bytes(streams, chunks) + wide_bytes(streams) + thread_bytes(streams, room_bytes) * threads;
    const int64_t sample = 4 * sampled + room_bytes;  // is over before the rest begins
    return searched > sample ? searched : sample;
  }

  uint32_t* fine(int stream, int64_t chunk) const {
    return reinterpret_cast<uint32_t*>(memory) + kFineBins * (stream * chunks + chunk);
  }
  int64_t* wide(int stream) const {
    return reinterpret_cast<int64_t*>(memory + fine_bytes(streams, chunks)) + kWideBins * stream;
  }
  uint8_t* threads() const { return memory + fine_bytes(streams, chunks) + wide_bytes(streams); }
};

// What one thread counts.
struct StreamCounts {
  uint8_t* memory = nullptr;
  int64_t above[kMaxStreams] = {};
  int64_t pending = 0;

  uint32_t* wide(int stream, int table) const {
    return reinterpret_cast<uint32_t*>(memory) + kWideBins * (kWideTables * stream + table);
  }
};

// Adds the scores of a tile that are in a range to tables of `bins` that take turns; returns how many are above it.
template <int kTurns>
inline int32_t count_in_range(const StreamSearch& search, const float* values, int count, uint32_t* tables,
                              int bins) {
  alignas(64) uint32_t inside[kMergeTile + 16];
  int32_t above = 0;
  const int kept = collect_range(values, count, static_cast<uint32_t>(search.least),
                                 static_cast<uint32_t>(search.span), inside, &above);
  const int shift = search.shift;
  int i = 0;
  for (; i + kTurns <= kept; i += kTurns)
    for (int turn = 0; turn < kTurns; ++turn) ++tables[bins * turn + (inside[i + turn] >> shift)];
  for (; i < kept; ++i) ++tables[inside[i] >> shift];
  return above;
}

// Adds a thread's histograms to those of all, before its counters are full.
inline void flush_wide(int streams, const SearchRoom& room, StreamCounts& mine) {
  for (int stream = 0; stream < streams; ++stream)
    for (int table = 0; table < kWideTables; ++table) {
      uint32_t* const counts = mine.wide(stream, table);
      int64_t* const all = room.wide(stream);
      for (int bin = 0; bin < kWideBins; ++bin) {
        if (counts[bin] == 0) continue;
#pragma omp atomic
        all[bin] += counts[bin];
        counts[bin] = 0;
      }
    }
  mine.pending = 0;
}

// One reading for all streams that are still looked for.
template <class Streams>
void count_streams(const Streams& streams, const StreamSearch* searches, const SearchRoom& room,
                   const Chunks& chunks, int threads, int64_t* above) {
  uint32_t wanted = 0;
  for (int stream = 0; stream < streams.streams; ++stream) {
    above[stream] = 0;
    wanted |= static_cast<uint32_t>(!searches[stream].done) << stream;
    for (int bin = 0; bin < kWideBins; ++bin) room.wide(stream)[bin] = 0;
  }
  const int64_t tables = 4 * int64_t{kWideBins} * kWideTables * streams.streams;
  Slots slots{room.threads(), SearchRoom::thread_bytes(streams.streams, room.room_bytes)};
  parallel_chunks<StreamCounts>(
      chunks, threads,
      [&](StreamCounts& mine, int chunk) {
        if (mine.memory == nullptr) {
          mine.memory = slots.take();
          std::memset(mine.memory, 0, static_cast<size_t>(tables));
        }
        uint32_t fine[kMaxStreams][kFineTables * kFineBins];
        for (int stream = 0; stream < streams.streams; ++stream) std::memset(fine[stream], 0, sizeof fine[0]);
        read_streams(streams, chunks.begin(chunk), chunks.end(chunk), wanted,
                     reinterpret_cast<float*>(mine.memory + tables),
                     [&](int stream, const float* values, int64_t, int count) {
                       const StreamSearch& search = searches[stream];
                       mine.above[stream] +=
                           search.fine()
                               ? count_in_range<kFineTables>(search, values, count, fine[stream], kFineBins)
                               : count_in_range<kWideTables>(search, values, count, mine.wide(stream, 0),
                                                             kWideBins);
                     });
        for (int stream = 0; stream < streams.streams; ++stream)
          for (int bin = 0; bin < kFineBins; ++bin) {
            uint32_t sum = 0;
            for (int table = 0; table < kFineTables; ++table) sum += fine[stream][kFineBins * table + bin];
            room.fine(stream, chunk)[bin] = sum;
          }
        mine.pending += chunks.length;
        if (mine.pending + chunks.length < int64_t{1} << 31) return;
        flush_wide(streams.streams, room, mine);
      },
      [&](StreamCounts& mine) {
        if (mine.memory == nullptr) return;
        flush_wide(streams.streams, room, mine);
        for (int stream = 0; stream < streams.streams; ++stream) above[stream] += mine.above[stream];
      });
}

// Narrows the range to the bin that holds the threshold; false where the range does not have it.
inline bool narrow(StreamSearch& search, int64_t above, const int64_t* bins, int count) {
  if (above >= search.keep) return false;
  int bin = count - 1;
  for (; bin >= 0 && above + bins[bin] < search.keep; --bin) above += bins[bin];
  if (bin < 0) return false;
  const int64_t begin = static_cast<int64_t>(bin) << search.shift, width = int64_t{1} << search.shift;
  search.least += begin;
  search.span = search.span - begin < width ? search.span - begin : width;
  search.bits = search.least;
  search.ties = search.keep - above;
  return true;
}

// The index behind the last tie that is kept.
template <class Streams>
int64_t find_cut(const Streams& streams, int stream, const StreamSearch& search, const SearchRoom& room,
                 const Chunks& chunks, int64_t bin) {
  int64_t left = search.ties;
  int chunk = 0;
  for (; left > room.fine(stream, chunk)[bin]; ++chunk) left -= room.fine(stream, chunk)[bin];
  int64_t cut = 0;
  const uint32_t bits = static_cast<uint32_t>(search.bits);
  for (int64_t begin = chunks.begin(chunk); left > 0; begin += kMergeTile) {
    const int64_t end = begin + kMergeTile < chunks.end(chunk) ? begin + kMergeTile : chunks.end(chunk);
    read_streams(streams, begin, end, 1u << stream, reinterpret_cast<float*>(room.threads()),
                 [&](int, const float* values, int64_t position, int count) {
                   int32_t ties = 0;
                   for (int i = 0; i < count; ++i) ties += score_of(values[i]) == bits;
                   if (ties < left) {
                     left -= ties;
                     return;
                   }
                   for (int i = 0; left > 0; ++i) {
                     left -= score_of(values[i]) == bits;
                     cut = position + i + 1;
                   }
                 });
  }
  return cut;
}

// Sets every search's range to where its sample says that the threshold is.
template <class Streams>
void sample_streams(const Streams& streams, int64_t numel, StreamSearch* searches, uint8_t* memory) {
  const int64_t sampled = sample_size(numel), runs = sampled / kSampleRun;
  for (int stream = 0; stream < streams.streams; ++stream) searches[stream].look_at_all();
  if (sampled == 0) return;
  uint32_t* const sample = reinterpret_cast<uint32_t*>(memory);
  float* const room = reinterpret_cast<float*>(memory + 4 * sampled);
  TileReader reader(streams.donors);
  for (int stream = 0; stream < streams.streams; ++stream) {
    StreamSearch& search = searches[stream];
    if (search.done) continue;
    for (int64_t run = 0; run < runs; ++run) {
      // Somewhere in the run's share of the weights: no row length keeps step with it.
      const uint64_t dice = (static_cast<uint64_t>(run) + 1) * 0x9e3779b97f4a7c15ull >> 40;
      const int64_t at = numel / runs * run + static_cast<int64_t>(dice) % (numel / runs);
      reader.move_to(at + kSampleRun <= numel ? at : numel - kSampleRun, kSampleRun);
      streams.read(reader, 1u << stream, room, [&](int, const float* values) {
        for (int i = 0; i < kSampleRun; ++i) sample[run * kSampleRun + i] = score_of(values[i]);
      });
    }
    // Neighbours resemble each other: some more than the standard deviations that independent scores would take.
    const double share = static_cast<double>(search.keep) / static_cast<double>(numel);
    const double rank = share * static_cast<double>(sampled),
                 margin = 8 * __builtin_sqrt(rank * (1 - share)) + 16;
    const int64_t most = static_cast<int64_t>(rank + margin), fewest = static_cast<int64_t>(rank - margin);
    const ScoreArray scores{sample, sampled, 1};
    const int64_t low = most < sampled ? find_threshold(scores, most).score : 0;
    const int64_t high = fewest > 0 ? find_threshold(scores, fewest).score : (int64_t{1} << 31) - 1;
    search.least = low;
    search.span = high + 1 - low;
    search.choose_bins();
  }
}

template <class Streams>
void find_thresholds(const Streams& streams, int64_t numel, const int64_t* keeps, int64_t* found,
                     uint8_t* workspace, int threads) {
  const Chunks chunks = cut(numel);
  const SearchRoom room{workspace, streams.streams, chunks.count, Streams::room_bytes(streams.donors.count)};
  StreamSearch searches[kMaxStreams];
  int left = 0;
  for (int stream = 0; stream < streams.streams; ++stream) {
    StreamSearch& search = searches[stream];
    search = {keeps[stream], 0, 0, 0, keeps[stream] == 0, 0xffffffff, 0, 0};
    left += !search.done;
  }
  sample_streams(streams, numel, searches, workspace);
  while (left > 0) {
    int64_t above[kMaxStreams];
    count_streams(streams, searches, room, chunks, threads, above);
    for (int stream = 0; stream < streams.streams; ++stream) {
      StreamSearch& search = searches[stream];
      if (search.done) continue;
      int64_t fine[kFineBins] = {};
      const bool last = search.fine();
      const int64_t least = search.least;
      if (last)
        for (int chunk = 0; chunk < chunks.count; ++chunk)
          for (int bin = 0; bin < kFineBins; ++bin) fine[bin] += room.fine(stream, chunk)[bin];
      if (!narrow(search, above[stream], last ? fine : room.wide(stream), last ? kFineBins : kWideBins)) {
        search.look_at_all();
      } else if (last) {
        search.cut = find_cut(streams, stream, search, room, chunks, search.bits - least);
        search.done = true;
        --left;
      } else {
        search.choose_bins();
      }
    }
  }
  for (int stream = 0; stream < streams.streams; ++stream) {
    found[3 * stream] = searches[stream].bits;
    found[3 * stream + 1] = searches[stream].ties;
    found[3 * stream + 2] = searches[stream].cut;
  }
}

// For the differences, in groups of kMaxStreams, or for the variance.
inline int64_t threshold_workspace(int64_t donors, int64_t numel, int threads) {
  const int64_t chunks = cut(numel).count, sampled = sample_size(numel);
  const int streams = static_cast<int>(donors < kMaxStreams ? donors : kMaxStreams);
  const int64_t differences = SearchRoom::bytes(streams, chunks, 0, threads, sampled);
  const int64_t variance = SearchRoom::bytes(1, chunks, VarianceStream::room_bytes(donors), threads, sampled);
  return differences > variance ? differences : variance;
}

}  // namespace graftwork::GRAFTWORK_LEVEL
