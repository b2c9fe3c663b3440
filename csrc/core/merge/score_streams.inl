// Streams of values that are read together: the differences of each donor, or the variance over all of them. Their
// scores are the bits of their magnitudes.
#pragma once

#include "core/merge/donors.inl"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kMaxStreams = 8;  // read together

// Donors first .. first + streams - 1, a stream each.
struct DifferenceStreams {
  const Donors& donors;
  int64_t first;
  int streams;

  static int64_t room_bytes(int64_t) { return 0; }

  // Calls body(stream, values) for the streams of `wanted` (a bit each), of the elements that the reader is at.
  template <class Body>
  void read(const TileReader& reader, uint32_t wanted, float*, const Body& body) const {
    alignas(64) float values[kTileRoom];
    for (int stream = 0; stream < streams; ++stream) {
      if ((wanted >> stream & 1) == 0) continue;
      reader.difference(first + stream, values);
      body(stream, values);
    }
  }
};

// One stream.
struct VarianceStream {
  const Donors& donors;
  static constexpr int streams = 1;

  static int64_t room_bytes(int64_t donors) { return 4 * donors * kTileRoom; }

  template <class Body>
  void read(const TileReader& reader, uint32_t, float* room, const Body& body) const {
    alignas(64) float variance[kTileRoom];
    for (int64_t donor = 0; donor < donors.count; ++donor) reader.difference(donor, room + donor * kTileRoom);
    variance_of(room, donors.count, reader.count, variance);
    body(0, variance);
  }
};

// The same for the elements from `begin` to `end`, tile by tile: body(stream, values, position, count).
template <class Streams, class Body>
inline void read_streams(const Streams& streams, int64_t begin, int64_t end, uint32_t wanted, float* room,
                         const Body& body) {
  TileReader reader(streams.donors);
  for (; begin < end; begin += kMergeTile) {
    const int count = static_cast<int>(end - begin < kMergeTile ? end - begin : kMergeTile);
    reader.move_to(begin, count);
    streams.read(reader, wanted, room,
                 [&](int stream, const float* values) { body(stream, values, begin, count); });
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL
